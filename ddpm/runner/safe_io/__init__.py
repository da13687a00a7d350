"""Reading untrusted files as plain data, and writing files whole or not at all."""
