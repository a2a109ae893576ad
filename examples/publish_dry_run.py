"""All of a release but the last step: `python examples/publish_dry_run.py RELEASE.yml` makes it and shows the plan.

With `hermetiq.publish` in the place of `hermetiq.prepare_release` it goes to the Hub.
"""

import sys

import hermetiq


def main(recipe: str) -> int:
    release = hermetiq.ReleaseRecipe.read(recipe)
    hermetiq.export(release.path, release.folder, overwrite=True, **release.export_options())
    reports = hermetiq.verify(release.folder, release.path, **release.verify_options())
    if failed := [report.file for report in reports if not report.passed]:
        print(f"not published: {', '.join(failed)}", file=sys.stderr)
        return 1

    job = hermetiq.prepare_release(release.folder, release.repo, **release.publish_options())
    for repo in job.plan.repos:
        for branch in repo.branches:
            for file in branch.files:
                print(f"{repo.id}@{branch.name}  {file.path}  {file.bytes} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
