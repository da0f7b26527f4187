//! Why a member must not take part any more, and how its peers tell it.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::Members;

/// Carries the verdict beside the refusal of a message.
const HEADER: &str = "quorate-verdict";

/// Why a member must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its id was taken out of the cluster, for good.
    Removed,
    /// Its id belongs to another data directory: what it once acknowledged is not here.
    OtherDirectory,
}

impl Verdict {
    const ALL: [Self; 2] = [Self::Removed, Self::OtherDirectory];

    fn word(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::OtherDirectory => "other-directory",
        }
    }

    /// What a person reads, and does.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::Removed => {
                "this member was removed from its cluster; to join again it needs a new member (quorate member add) \
                 and an empty data directory"
            }
            Self::OtherDirectory => {
                "this member has already run with another data directory, and what it acknowledged there is not \
                 here; restore that directory, or remove the member and add a new one with an empty directory"
            }
        }
    }

    /// The refusal of a message of `member`.
    pub(super) fn status(self, member: u64) -> Status {
        let mut status = Status::failed_precondition(format!("quorate: member {member:x}: {}", self.advice()));
        status.metadata_mut().insert(HEADER, MetadataValue::from_static(self.word()));
        status
    }

    /// The verdict on the sender of a message that was refused so.
    pub(super) fn of(status: &Status) -> Option<Self> {
        let word = status.metadata().get(HEADER).filter(|_| status.code() == Code::FailedPrecondition)?;
        Self::ALL.into_iter().find(|verdict| word == verdict.word())
    }
}

/// The verdict on `member`, whose data is in `directory` (0 if it does not say).
pub(super) fn on(members: &Members, member: u64, directory: u64) -> Option<Verdict> {
    if members.removed.contains(&member) {
        return Some(Verdict::Removed);
    }
    let tied = members.directory(member);
    (tied != 0 && directory != 0 && tied != directory).then_some(Verdict::OtherDirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Attributes;
    use crate::peer::Known;

    #[test]
    fn removed_and_replaced_members_are_told() {
        let said = Some(Attributes { directory: 9, ..Default::default() });
        let mut members = Members::default();
        members.known.insert(1, Known { said, ..Default::default() });
        members.known.insert(2, Known::default());
        members.removed.insert(3);
        assert_eq!(on(&members, 1, 9), None);
        assert_eq!(on(&members, 1, 8), Some(Verdict::OtherDirectory));
        assert_eq!(on(&members, 2, 8), None, "not tied yet");
        assert_eq!(on(&members, 3, 8), Some(Verdict::Removed));
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::of(&verdict.status(1)), Some(verdict));
        }
        assert_eq!(Verdict::of(&Status::failed_precondition("not leader")), None);
    }
}
