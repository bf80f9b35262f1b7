"""A term with a learning platform: its downloads come in, its grade sheets go out, and deadlines and regrades between."""
