//! Where Quorate's answers are known to differ from etcd's, and why. Nothing is skipped:
//! these cases run, an entry that no case needs any more fails the suite.

/// What a difference begins with, and why it is there.
type Known = (&'static str, &'static str);

const NO_ADDRESS: &str = "etcd moves a member to addresses that are none, and it is lost";

/// Of the scripts of requests.
pub(crate) const SCRIPTS: &[Known] = &[
    ("cluster: etcdserverpb.Cluster/MemberUpdate m0 ", NO_ADDRESS),
    ("cluster: a learner moves", "etcd forgets that a member that moves is a learner"),
];

/// Of the commands of etcdctl.
pub(crate) const COMMANDS: &[Known] = &[];

/// The differences that nobody knows of, and the entries that none bears out.
pub(crate) fn unknown(known: &[Known], differences: Vec<String>) -> Vec<String> {
    let stale = known.iter().filter(|(start, _)| !differences.iter().any(|difference| difference.starts_with(start)));
    let mut unknown: Vec<String> =
        stale.map(|(start, why)| format!("{start}: no longer differs, so drop what is said of it: {why}")).collect();
    unknown.extend(
        differences.into_iter().filter(|difference| !known.iter().any(|(start, _)| difference.starts_with(start))),
    );
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_and_what_is_stale_is_said() {
        let known = &[("a: ", "why a"), ("b: ", "why b")];
        let differences = vec!["a: 1".to_owned(), "a: 2".to_owned(), "c: 3".to_owned()];
        let unknown = unknown(known, differences);
        assert_eq!(unknown, ["b: : no longer differs, so drop what is said of it: why b", "c: 3"]);
    }
}
