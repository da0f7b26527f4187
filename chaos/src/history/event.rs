//! The words of a history: who asked whom for what, and what was answered.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub i64);

/// A term of Raft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

/// A member of the cluster: the vantage point from which an answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Member(pub u16);

/// A client; it has one operation under way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Client(pub u32);

/// One request of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u64);

/// One watch of a run, from its creation to its end on one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WatchId(pub u64);

/// A key as an answer showed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: i64,
    /// 0 without one.
    #[serde(default)]
    pub lease: i64,
}

/// What a client asks. Every value that is written in a run is unique to its request, which
/// is how a value that is seen tells who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Get {
        key: String,
        read: Read,
    },
    Put {
        key: String,
        value: String,
        #[serde(default)]
        lease: i64,
    },
    Delete {
        key: String,
    },
    /// Puts `value`, or deletes when there is none, if `key` was last modified at `expected`
    /// (0: does not exist); otherwise reads `key`.
    CompareAndSwap {
        key: String,
        expected: Revision,
        value: Option<String>,
    },
    /// Several keys and values in one transaction, thus at one revision.
    PutAll {
        puts: Vec<(String, String)>,
    },
    Compact {
        revision: Revision,
    },
    Grant {
        lease: i64,
        ttl_seconds: i64,
    },
    KeepAlive {
        lease: i64,
    },
    Revoke {
        lease: i64,
    },
}

/// How a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Read {
    Linearizable,
    /// What the asked member has now.
    Serializable,
    /// What the asked member knows of an earlier revision.
    At(Revision),
}

/// What a successful answer says beside its header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The request was carried out.
    Done,
    /// The answer to [`Request::Get`].
    Found(Option<KeyValue>),
    /// The answer to [`Request::Delete`]: whether there was something to delete.
    Deleted(bool),
    /// A [`Request::CompareAndSwap`] that did not match, and what it read instead.
    Refused(Option<KeyValue>),
    /// The answer to [`Request::Grant`] and [`Request::KeepAlive`]; 0 for a lease that is gone.
    Ttl(i64),
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The header's revision, where the protocol has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    pub answer: Answer,
}

/// What a watch asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    pub keys: Keys,
    /// 0: from now on.
    pub start_revision: Revision,
    #[serde(default)]
    pub prev_kv: bool,
    #[serde(default)]
    pub no_put: bool,
    #[serde(default)]
    pub no_delete: bool,
}

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    All,
    Prefix(String),
    One(String),
}

/// One message of a watch. Without events, and neither created nor canceled, it is a
/// progress notification. One that speaks for a whole stream is recorded for each watch of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The header's revision.
    pub revision: Revision,
    #[serde(default)]
    pub created: bool,
    #[serde(default)]
    pub canceled: bool,
    /// Of a cancelled watch that asked for what is compacted; otherwise 0.
    #[serde(default)]
    pub compact_revision: Revision,
    /// The next message goes on with the same revision.
    #[serde(default)]
    pub fragment: bool,
    #[serde(default)]
    pub events: Vec<WatchEvent>,
}

/// One change, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    pub kind: EventKind,
    /// Of a deletion: the key and the revision alone.
    pub kv: KeyValue,
    #[serde(default)]
    pub prev: Option<KeyValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Put,
    Delete,
}

/// What a member says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Invoke {
        operation: OperationId,
        client: Client,
        member: Member,
        request: Request,
    },
    Ok {
        operation: OperationId,
        reply: Reply,
    },
    /// It was refused and has no effect, now or later.
    Fail {
        operation: OperationId,
        error: String,
    },
    /// Nobody knows whether it takes effect; as without any answer.
    Unknown {
        operation: OperationId,
        error: String,
    },
    /// A watch was asked for. One `watcher` may open several, each to go on after the last.
    Watch {
        watch: WatchId,
        watcher: Client,
        member: Member,
        request: WatchRequest,
    },
    Told {
        watch: WatchId,
        response: Response,
    },
    Role {
        member: Member,
        term: Term,
        role: Role,
    },
    /// The hash of a member's keys at a revision; comparable where as much was compacted.
    Hash {
        member: Member,
        revision: Revision,
        compact_revision: Revision,
        hash: u32,
    },
    /// Something was done to the cluster; told when it was undone, or at the end.
    Fault {
        fault: String,
        from_nanos: u64,
        until_nanos: u64,
    },
    /// `holder` acted as the only owner of `resource`; told when it ended, or at the end.
    Held {
        resource: String,
        holder: String,
        from_nanos: u64,
        until_nanos: u64,
    },
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Since the run began, on one monotonic clock. Lines are in this order.
    pub at_nanos: u64,
    #[serde(flatten)]
    pub event: Event,
}

impl Keys {
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
            Self::One(one) => key == one,
        }
    }
}

impl WatchRequest {
    /// Whether an event of that key and kind belongs to the watch.
    pub fn matches(&self, key: &str, kind: EventKind) -> bool {
        let unwanted = match kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        !unwanted && self.keys.contains(key)
    }
}

impl Response {
    /// Whether all it says is how far the watch has come.
    pub fn is_progress(&self) -> bool {
        self.events.is_empty() && !self.created && !self.canceled
    }
}
