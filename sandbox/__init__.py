"""The embedded world: rendered questions with exact answers, small programs that look at pixels, their endpoint."""
