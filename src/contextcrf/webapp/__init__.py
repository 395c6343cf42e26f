"""The web page of `contextcrf demo`. The modules `page` and `server` need the extra "demo"; the others do not."""
