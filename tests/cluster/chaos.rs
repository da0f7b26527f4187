//! A store under faults, with clients whose every answer is checked: a short slice from one
//! seed. `QUORATE_CHAOS_SECONDS` makes it longer, `QUORATE_SEED` makes it another one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_chaos::members;
use quorate_chaos::run::{Options, run};
use quorate_tests::{binary, report};

/// How long there are faults unless the environment says otherwise.
const SLICE: &str = "20";

#[test]
fn no_promise_is_broken_under_faults() -> Result<()> {
    let number = |name: &str, otherwise: &str| {
        let text = std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
        text.parse::<u64>().with_context(|| format!("{name} is no number"))
    };
    let (seconds, seed) = (number("QUORATE_CHAOS_SECONDS", SLICE)?, number("QUORATE_SEED", "1")?);
    let folder = tempfile::Builder::new().prefix("quorate-chaos-").tempdir()?;
    let members = members::Options { binary: binary()?, folder: folder.path().to_owned(), members: 3, disks: true };
    let summary = run(&Options { members, seed, lasts: Duration::from_secs(seconds), network: true });
    let passed = summary.as_ref().is_ok_and(|summary| summary.passed());
    let kept = if passed { folder.path().to_owned() } else { folder.keep() };
    let summary = summary.with_context(|| format!("seed {seed} could not be run; see {}", kept.display()))?;
    report(&summary.to_string());
    ensure!(
        passed,
        "{summary}\nsee {}; again with QUORATE_SEED={seed} QUORATE_CHAOS_SECONDS={seconds} ./x test -p quorate-tests \
         --test cluster no_promise",
        kept.display()
    );
    Ok(())
}
