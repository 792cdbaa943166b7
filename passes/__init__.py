"""Graph passes: one file, one pass. `registry` names them, `pipelines` orders them, `README.md` is their contract."""
