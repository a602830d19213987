"""Numbers in, pictures out: figures, coloured tokens, the page. plotly, pandas and jinja2 load on use."""
