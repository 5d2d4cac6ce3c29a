"""What ``spark-submit`` runs."""

import sys

from ml_lifecycle.spark.application import main

if __name__ == "__main__":
    sys.exit(main())
