//! Conversations: a stream of requests and the stream of answers, act by act.
//!
//! Both clusters hear each act at the same time. Before the next one both must have said
//! equally much and fallen silent, so that what is compared does not depend on which of
//! them is faster.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use crate::call::{Call, Target, Who, Wire, client, normalise, render};

/// A stream that says nothing for so long has said what it had to say. etcd looks at
/// watches that lag every 100 ms.
const SILENCE: Duration = Duration::from_millis(180);

/// How long the cluster that has said less may take to say as much.
const PATIENCE: Duration = Duration::from_secs(4);

const POLL: Duration = Duration::from_millis(10);

/// A part of a conversation.
#[derive(Clone)]
pub(crate) enum Act<Q> {
    Send(Q),
    /// Several messages at once, without waiting for answers between them.
    SendAll(Vec<Q>),
    /// Another request, whose answer is compared as well.
    Do(Call),
    /// Waits until both have said so many messages.
    Hear(usize),
    /// The client says that it sends no more.
    HalfClose,
}

struct Session<Q> {
    sender: Option<mpsc::UnboundedSender<Q>>,
    heard: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl<Q> Drop for Session<Q> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl<Q> Session<Q> {
    fn open<R>(target: &Target, who: Who, path: &'static str, blurred: &[&'static str]) -> Self
    where
        Q: Wire,
        R: Wire,
    {
        let (sender, requests) = mpsc::unbounded_channel();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (channel, words, blurred) = (target.channel(who), Arc::clone(&heard), blurred.to_vec());
        let reader = tokio::spawn(async move {
            let say = |text: String| {
                words.lock().unwrap_or_else(PoisonError::into_inner).push(normalise(&text, &blurred));
            };
            let opened = async {
                let codec = ProstCodec::<Q, R>::default();
                let requests = Request::new(UnboundedReceiverStream::new(requests));
                client(channel).await?.streaming(requests, PathAndQuery::from_static(path), codec).await
            };
            let mut answers = match opened.await {
                Ok(response) => response.into_inner(),
                Err(status) => return say(render::<()>(&Err(status))),
            };
            loop {
                match answers.message().await {
                    Ok(Some(message)) => say(render(&Ok(message))),
                    Ok(None) => return say("the stream ends".to_owned()),
                    Err(status) => return say(render::<()>(&Err(status))),
                }
            }
        });
        Self { sender: Some(sender), heard, reader }
    }

    fn count(&self) -> usize {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn send(&self, message: Q) {
        if let Some(sender) = &self.sender {
            // A stream that has ended says so in what is heard.
            let _ = sender.send(message);
        }
    }

    fn said(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Holds the same conversation with both; each answer is everything it said.
pub(crate) async fn converse<Q, R>(
    targets: &[Target; 2],
    who: Who,
    path: &'static str,
    acts: &[Act<Q>],
    blurred: &[&'static str],
) -> [String; 2]
where
    Q: Wire,
    R: Wire,
{
    let mut sessions = [0, 1].map(|side: usize| Session::open::<R>(&targets[side], who, path, blurred));
    let mut answers = [String::new(), String::new()];
    for (number, act) in acts.iter().enumerate() {
        match act {
            Act::Send(message) => sessions.iter().for_each(|session| session.send(message.clone())),
            Act::SendAll(messages) => {
                for session in &sessions {
                    messages.iter().for_each(|message| session.send(message.clone()));
                }
            }
            Act::Do(call) => {
                let (first, second) = tokio::join!(call.send(&targets[0]), call.send(&targets[1]));
                for (answer, text) in answers.iter_mut().zip([first, second]) {
                    *answer += &format!("act {number} is answered: {text}\n");
                }
            }
            Act::Hear(count) => {
                let deadline = Instant::now() + PATIENCE;
                while sessions.iter().any(|session| session.count() < *count) && Instant::now() < deadline {
                    tokio::time::sleep(POLL).await;
                }
            }
            Act::HalfClose => sessions.iter_mut().for_each(|session| session.sender = None),
        }
        settle(&sessions).await;
    }
    for (answer, session) in answers.iter_mut().zip(&sessions) {
        *answer += &session.said().join("\n");
    }
    answers
}

/// Waits until both are silent and have said equally much, or one of them has had its time.
async fn settle<Q>(sessions: &[Session<Q>; 2]) {
    let begin = Instant::now();
    let mut seen = [usize::MAX; 2];
    let mut since = begin;
    loop {
        let counts = [sessions[0].count(), sessions[1].count()];
        if counts != seen {
            seen = counts;
            since = Instant::now();
        }
        let silent = since.elapsed() >= SILENCE;
        if silent && (counts[0] == counts[1] || begin.elapsed() >= PATIENCE) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}
