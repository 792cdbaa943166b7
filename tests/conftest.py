"""Settings of every test."""

import os

# Each pytest-xdist worker shares two cores with the other: thread pools of their own would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TERSOR_CACHE"] = "off"  # tests compile; those of the cache name a folder of their own
