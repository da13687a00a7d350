"""Pages on this machine: job=watch and job=play. Needs the extra `web` (Starlette and Uvicorn)."""
