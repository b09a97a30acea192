"""A run on a page: figures as inline SVG, a read-only web server, and the report of a run. No script library."""
