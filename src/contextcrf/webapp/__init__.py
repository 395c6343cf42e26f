"""The web page of `contextcrf demo`. `page` and `server` need the extra "demo", the other modules do not."""
