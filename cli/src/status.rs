//! `quorate status`: who leads, who lags, what the cluster can lose.

mod members;

use anyhow::Result;

use crate::endpoints::Endpoints;
use crate::output::Format;

/// The exit code when the cluster has no leader: scripts can tell it from a failure to ask.
const NO_QUORUM: u8 = 2;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate status                       the cluster that `quorate up` keeps in ./quorate-data
  quorate status --endpoints 127.0.0.1:2379,127.0.0.2:2379
                                       any store, also a real etcd
  quorate status -o json | jq .members
Exit codes: 0 the cluster has a leader; 2 it has none; 1 it could not be asked.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoints: Endpoints,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8> {
    members::run(&arguments.endpoints, arguments.output).await
}

/// One sentence on what holds and what can be lost, of `all` voters called `noun`s.
fn summary(noun: &str, leader: Option<&str>, term: u64, living: usize, all: usize, can_lose: usize) -> String {
    match (leader, can_lose) {
        (None, _) if living == 0 => format!("No {noun} answers: the cluster is down."),
        (None, _) => format!("No leader: {living} of {all} {noun}s answer, and writes wait for a majority."),
        (Some(leader), 0) if all == 1 => {
            format!("{leader} leads in term {term}. The only {noun}: losing it stops the cluster.")
        }
        (Some(leader), 0) => {
            format!("{leader} leads in term {term}. {living} of {all} {noun}s answer: losing one more stops writes.")
        }
        (Some(leader), can_lose) => {
            format!(
                "{leader} leads in term {term}. {living} of {all} {noun}s answer: the cluster can lose {can_lose} more."
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(leader: Option<&str>, living: usize, all: usize, can_lose: usize, expected: &str) {
        assert_eq!(summary("master", leader, 7, living, all, can_lose), expected);
    }

    #[test]
    fn the_summary_says_what_can_be_lost() {
        check(Some("m1"), 3, 3, 1, "m1 leads in term 7. 3 of 3 masters answer: the cluster can lose 1 more.");
        check(Some("m1"), 2, 3, 0, "m1 leads in term 7. 2 of 3 masters answer: losing one more stops writes.");
        check(Some("m1"), 1, 1, 0, "m1 leads in term 7. The only master: losing it stops the cluster.");
        check(None, 1, 3, 0, "No leader: 1 of 3 masters answer, and writes wait for a majority.");
        check(None, 0, 3, 0, "No master answers: the cluster is down.");
    }
}
