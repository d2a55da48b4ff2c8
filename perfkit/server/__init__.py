"""HTTP as a server speaks it: a server for development, and the conditions of a request."""
