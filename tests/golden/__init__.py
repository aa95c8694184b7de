"""Golden files: what fixed small runs gave, and whole run folders of earlier versions. `make.py` makes and checks them."""
