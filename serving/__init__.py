"""From text to answers: pipelines, and the server that puts them on HTTP."""
