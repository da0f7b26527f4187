//! What a client hears whose message is larger than the transport takes: etcd's code and
//! text, not those of the library here.

use axum::response::Response;
use tonic::{Code, Status};

/// What the library says; two numbers are in it.
const BEGINNING: &str = "Error, decoded message length too large: found ";
const MIDDLE: &str = " bytes, the limit is: ";
const END: &str = " bytes";

/// Translates the answer to a message that was too large; leaves every other as it is.
pub(super) async fn in_etcds_words(response: Response) -> Response {
    // Errors before the first answer are in the headers, and nothing follows.
    let status = match response.headers().get(Status::GRPC_STATUS) {
        Some(code) if code == "11" => Status::from_header_map(response.headers()),
        _ => return response,
    };
    match status.and_then(|status| translate(&status)) {
        Some(status) => status.into_http(),
        None => response,
    }
}

fn translate(status: &Status) -> Option<Status> {
    let (found, rest) = status.message().strip_prefix(BEGINNING)?.split_once(MIDDLE)?;
    let limit = rest.strip_suffix(END)?;
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    (status.code() == Code::OutOfRange).then(|| Status::new(Code::ResourceExhausted, text))
}
