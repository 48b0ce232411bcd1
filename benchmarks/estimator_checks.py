"""Does the classifier for scikit-learn pass scikit-learn's own checks?

python benchmarks/estimator_checks.py    a minute; --quick and --smoke are the same

passed     checks of `sklearn.utils.estimator_checks.check_estimator` that passed
failed     checks that did not
skipped    checks that scikit-learn skips here
seconds    of all of them
"""

import time
import warnings
from collections import Counter

import common
import sklearn
from sklearn.utils.estimator_checks import check_estimator

from onward.sklearn import OnwardClassifier


def main() -> None:
    options = common.parser(__doc__).parse_args()
    form = common.form_of(options)
    estimator = OnwardClassifier(widths=(100, 100), epochs=30, batch_size=20)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks = check_estimator(estimator, on_fail=None, on_skip=None)
    for check in checks:
        if check["status"] != "passed":
            print(f"{check['check_name']} {check['status']}: {check['exception']}")
    counted = Counter(check["status"] for check in checks)
    figures = {
        "passed": counted["passed"],
        "failed": counted["failed"],
        "skipped": counted["skipped"],
        "seconds": round(time.perf_counter() - start, 1),
        "scikit_learn": sklearn.__version__,
    }
    if form == "full":
        common.record(options.out / "estimator_checks.json", figures)
    common.last_line(figures, form)
    if figures["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
