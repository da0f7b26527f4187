//! One request and how it is sent; what comes back becomes text that can be compared.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// A request that takes longer has no answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The pause before a request is sent again.
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// A message of the contract.
pub(crate) trait Wire: prost::Message + Clone + Debug + Default + 'static {}

impl<T: prost::Message + Clone + Debug + Default + 'static> Wire for T {}

/// Which member of a cluster is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Who {
    #[default]
    Leader,
    Follower,
}

/// One cluster, and what its clients remember of its answers.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) channels: Vec<Channel>,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) leader: usize,
    pub(crate) memory: Arc<Mutex<Memory>>,
}

/// Ids and tokens that each cluster chooses itself, by the name a script gives them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) numbers: BTreeMap<&'static str, u64>,
    pub(crate) tokens: BTreeMap<&'static str, String>,
}

impl Memory {
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.numbers.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn id(&self, name: &str) -> i64 {
        self.number(name) as i64
    }
}

impl Target {
    pub(crate) fn channel(&self, who: Who) -> Channel {
        self.channels[self.place(who)].clone()
    }

    pub(crate) fn place(&self, who: Who) -> usize {
        match who {
            Who::Leader => self.leader,
            Who::Follower => (self.leader + 1) % self.channels.len(),
        }
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, change: impl FnOnce(&mut Memory)) {
        change(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a newer etcd answers otherwise than 3.4, on purpose.
#[derive(Clone)]
pub(crate) struct Newer {
    pub(crate) why: &'static str,
    /// The newer answer, made from that of 3.4.
    pub(crate) answer: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

/// How a request travels.
#[derive(Clone, Copy, Default)]
struct Manner {
    who: Who,
    /// The name of the token that comes with it.
    token: Option<&'static str>,
    /// Asks for a member that knows a leader.
    has_leader: bool,
}

type Run = Arc<dyn Fn(Target, Manner) -> BoxFuture<'static, String> + Send + Sync>;

/// A request, ready to be sent to any cluster.
#[derive(Clone)]
pub(crate) struct Call {
    text: String,
    run: Run,
    manner: Manner,
    /// Fields whose values may differ; zero and empty remain what they are.
    pub(crate) blurred: Vec<&'static str>,
    pub(crate) newer: Option<Newer>,
}

impl Call {
    pub(crate) fn new(
        text: String,
        run: impl Fn(Target) -> BoxFuture<'static, String> + Send + Sync + 'static,
    ) -> Self {
        let run: Run = Arc::new(move |target, _| run(target));
        Self { text, run, manner: Manner::default(), blurred: Vec::new(), newer: None }
    }

    pub(crate) fn at(mut self, who: Who) -> Self {
        self.manner.who = who;
        self
    }

    /// Comes with a token that was remembered as `name`.
    pub(crate) fn by(mut self, name: &'static str) -> Self {
        self.manner.token = Some(name);
        self
    }

    /// Compares what `change` makes of the answer.
    fn mapped(mut self, change: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let (run, change) = (self.run, Arc::new(change));
        self.run = Arc::new(move |target, manner| {
            let (answer, change) = (run(target, manner), Arc::clone(&change));
            Box::pin(async move { change(&answer.await) })
        });
        self
    }

    /// Asks again while members that have just started count as unhealthy: etcd's for 5 s.
    pub(crate) fn once_healthy(mut self) -> Self {
        let run = self.run;
        self.run = Arc::new(move |target, manner| {
            let run = Arc::clone(&run);
            Box::pin(async move {
                loop {
                    let answer = run(target.clone(), manner).await;
                    if !answer.contains("unhealthy cluster") {
                        return answer;
                    }
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            })
        });
        self
    }

    /// Compares what stands before the first colon or brace: a code, or that it succeeded.
    pub(crate) fn first_word(self) -> Self {
        self.mapped(|answer| answer.split([':', ' ']).next().unwrap_or_default().to_owned())
    }

    /// Compares the first lines only: of HTTP, the first has the status and the content's type.
    pub(crate) fn first_lines(self, count: usize) -> Self {
        self.mapped(move |answer| answer.lines().take(count).collect::<Vec<_>>().join("\n"))
    }

    /// Leaves out where the members listen, which no two clusters share.
    pub(crate) fn without_addresses(self) -> Self {
        self.without_lines("\"http://127.")
    }

    pub(crate) fn without_lines(self, begin: &'static str) -> Self {
        let other = move |line: &&str| !line.trim_start().starts_with(begin);
        self.mapped(move |answer| answer.lines().filter(other).collect::<Vec<_>>().join("\n"))
    }

    /// Leaves out the header, which 3.4 does not send with everything and newer ones do.
    pub(crate) fn without_header(self) -> Self {
        self.mapped(|answer| {
            let mut inside = false;
            let mut kept = Vec::new();
            for line in answer.lines() {
                inside |= line == "    header: Some(";
                if !inside && line != "    header: None," {
                    kept.push(line);
                }
                inside &= line != "    ),";
            }
            kept.join("\n")
        })
    }

    pub(crate) fn wants_leader(mut self) -> Self {
        self.manner.has_leader = true;
        self
    }

    pub(crate) fn blur(mut self, fields: &[&'static str]) -> Self {
        self.blurred.extend(fields);
        self
    }

    pub(crate) fn newer(mut self, why: &'static str, answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.newer = Some(Newer { why, answer: Arc::new(answer) });
        self
    }

    /// What is asked, of whom, and how.
    pub(crate) fn text(&self) -> String {
        let mut text = self.text.clone();
        if self.manner.who != Who::default() {
            text += " at a follower";
        }
        if let Some(token) = self.manner.token {
            text += &format!(" by {token}");
        }
        if self.manner.has_leader {
            text += " wants a leader";
        }
        text
    }

    /// Sends it; the answer is normalised.
    pub(crate) async fn send(&self, target: &Target) -> String {
        let answer = tokio::time::timeout(PATIENCE, (self.run)(target.clone(), self.manner)).await;
        let answer = answer.unwrap_or_else(|_| format!("no answer within {PATIENCE:?}"));
        normalise(&answer, &self.blurred)
    }
}

fn request<Q>(message: Q, target: &Target, manner: Manner) -> Request<Q> {
    let mut request = Request::new(message);
    if let Some(name) = manner.token {
        // Without such a token, the text that stands for none.
        let token = target.memory().tokens.get(name).cloned().unwrap_or_else(|| name.to_owned());
        if let Ok(value) = AsciiMetadataValue::try_from(token) {
            request.metadata_mut().insert("token", value);
        }
    }
    if manner.has_leader {
        request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
    }
    request
}

/// A client that takes messages of any size.
pub(crate) async fn client(channel: Channel) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|error| Status::unavailable(format!("the connection is lost: {error}")))?;
    Ok(grpc)
}

/// The text of an answer.
pub(crate) fn render<R: Debug>(answer: &Result<R, Status>) -> String {
    match answer {
        Ok(message) => format!("{message:#?}"),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// A call of one message and one answer.
pub(crate) fn unary<Q, R>(path: &'static str, message: Q) -> Call
where
    Q: Wire,
    R: Wire,
{
    let text = clip(&format!("{message:?}"), 600);
    learning::<Q, R>(path, text, move |_| message.clone(), |_, _| {})
}

/// A call whose message is made from what the cluster answered before.
pub(crate) fn unary_with<Q, R>(
    path: &'static str,
    text: &str,
    message: impl Fn(&Memory) -> Q + Send + Sync + 'static,
) -> Call
where
    Q: Wire,
    R: Wire,
{
    learning::<Q, R>(path, text.to_owned(), message, |_, _| {})
}

/// As [`unary_with`]; something of the answer is remembered, or brought into an order
/// that does not depend on ids.
pub(crate) fn learning<Q, R>(
    path: &'static str,
    text: String,
    message: impl Fn(&Memory) -> Q + Send + Sync + 'static,
    learn: impl Fn(&mut R, &mut Memory) + Send + Sync + 'static,
) -> Call
where
    Q: Wire,
    R: Wire,
{
    let (message, learn) = (Arc::new(message), Arc::new(learn));
    let run: Run = Arc::new(move |target, manner| {
        let (message, learn) = (Arc::clone(&message), Arc::clone(&learn));
        Box::pin(async move {
            let request = request(message(&target.memory()), &target, manner);
            let answer = async {
                let mut client = client(target.channel(manner.who)).await?;
                let codec = ProstCodec::<Q, R>::default();
                client.unary(request, PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
            };
            let mut answer = answer.await;
            if let Ok(answer) = &mut answer {
                target.learn(|memory| learn(answer, memory));
            }
            render(&answer)
        })
    });
    let text = format!("{} {text}", path.trim_start_matches('/'));
    Call { text, run, manner: Manner::default(), blurred: Vec::new(), newer: None }
}

/// A call that is answered by a stream, of which `most` messages are read; `show` says
/// what is compared of each.
pub(crate) fn streamed<Q, R>(
    path: &'static str,
    message: Q,
    most: usize,
    show: impl Fn(&[R]) -> String + Send + Sync + 'static,
) -> Call
where
    Q: Wire,
    R: Wire,
{
    let text = format!("{} {message:?}", path.trim_start_matches('/'));
    let show = Arc::new(show);
    let run: Run = Arc::new(move |target, manner| {
        let (message, show) = (message.clone(), Arc::clone(&show));
        Box::pin(async move {
            let request = request(message, &target, manner);
            let answer = async {
                let mut client = client(target.channel(manner.who)).await?;
                let codec = ProstCodec::<Q, R>::default();
                let response = client.server_streaming(request, PathAndQuery::from_static(path), codec).await?;
                let mut stream = response.into_inner();
                let mut messages = Vec::new();
                while messages.len() < most {
                    match stream.message().await {
                        Ok(Some(message)) => messages.push(message),
                        Ok(None) => break,
                        Err(status) if messages.is_empty() => return Err(status),
                        Err(status) => return Ok((messages, format!("\n{}", render::<()>(&Err(status))))),
                    }
                }
                Ok((messages, String::new()))
            };
            match answer.await {
                Ok((messages, end)) => show(&messages) + &end,
                Err(status) => render::<()>(&Err(status)),
            }
        })
    });
    Call { text, run, manner: Manner::default(), blurred: Vec::new(), newer: None }
}

/// Fields that say who answered, and when in the cluster's elections.
const WHO: [&str; 3] = ["cluster_id", "member_id", "raft_term"];

/// Replaces the values of fields that differ between two clusters by nature. Absence
/// stays visible: zero and the empty string are kept.
pub(crate) fn normalise(text: &str, blurred: &[&'static str]) -> String {
    let line = |line: &str| {
        let Some((name, value)) = line.split_once(": ") else { return line.to_owned() };
        let field = name.trim().trim_matches('"');
        let value = value.trim_end_matches(',');
        let empty = ["0", "\"0\"", "\"\"", "b\"\"", "[]", "None"].contains(&value);
        if empty || !(WHO.contains(&field) || blurred.contains(&field)) {
            return line.to_owned();
        }
        format!("{name}: _")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// At most `most` bytes of `text`, and how long it was.
pub(crate) fn clip(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}… ({} bytes)", &text[..end], text.len())
}
