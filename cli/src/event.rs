//! `bixi event`.

use crate::context::{Context, segment};
use crate::failure::Failure;
use crate::output::{Shown, age, printable};
use bixi_api::operator::EventDescription;
use http_body_util::BodyExt;

/// The longest event of a stream, in bytes.
const LIMIT: usize = 1 << 20;

/// What happened in the cloud.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List what happened
    List {
        /// Only what happened after this event
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Print what happened, and go on with what happens
    Follow {
        /// Only what happened after this event
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
}

impl Command {
    /// Does it.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List { after } => list(context, after).await,
            Self::Follow { after } => follow(context, after).await,
        }
    }
}

async fn list(context: &Context, after: Option<String>) -> Result<(), Failure> {
    let (operator, mut all) = (context.operator()?, Vec::new());
    let mut last = after.as_deref().map(segment).transpose()?.map(str::to_owned);
    loop {
        let path = format!("/v1/events?after={}", last.as_deref().unwrap_or(""));
        let some: Vec<EventDescription> = operator.get(&path).await?;
        let Some(newest) = some.last() else { return context.output.list(&all) };
        last = Some(newest.id.clone());
        all.extend(some);
    }
}

async fn follow(context: &Context, after: Option<String>) -> Result<(), Failure> {
    let after = after.as_deref().map(segment).transpose()?.unwrap_or("");
    let path = format!("/v1/events?follow=true&after={after}");
    let mut stream = context.operator()?.stream(&path).await?;
    let mut events = Events::default();
    while let Some(frame) = stream.frame().await {
        let broken = |e| Failure::Failed(format!("the stream of events broke: {e}"));
        let Ok(bytes) = frame.map_err(broken)?.into_data() else { continue };
        for text in events.feed(&bytes)? {
            let event: EventDescription = serde_json::from_str(&text)
                .map_err(|e| Failure::Failed(format!("the cloud sent no event: {e}")))?;
            let json = context.output.is_json();
            context.output.print(&if json { format!("{text}\n") } else { line(&event) })?;
        }
    }
    Err(Failure::Failed("the cloud ended the stream of events: is it stopped?".to_owned()))
}

fn line(event: &EventDescription) -> String {
    let EventDescription { id, severity, subject, kind, message, .. } = event;
    let text = format!("{id}  {severity}  {subject}  {kind}  {message}");
    printable(&text).replace('\n', " ") + "\n"
}

/// Takes server-sent events apart: their data, whole, whatever pieces they come in.
#[derive(Debug, Default)]
pub(crate) struct Events {
    rest: Vec<u8>,
    data: String,
}

impl Events {
    /// The data of each event that `bytes` makes whole.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, Failure> {
        let mut whole = Vec::new();
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() && !self.data.is_empty() {
                whole.push(std::mem::take(&mut self.data));
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.trim_start());
            }
        }
        if self.rest.len() + self.data.len() > LIMIT {
            return Err(Failure::Failed("the cloud sent an event that has no end".to_owned()));
        }
        Ok(whole)
    }
}

impl Shown for EventDescription {
    const HEAD: &'static [&'static str] = &["ID", "AGE", "SEVERITY", "SUBJECT", "KIND", "MESSAGE"];

    fn row(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            age(self.at),
            self.severity.clone(),
            self.subject.clone(),
            self.kind.clone(),
            self.message.clone(),
        ]
    }

    fn name(&self) -> String {
        self.id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_whatever_pieces_they_come_in() {
        let stream = b"id: 1\nevent: x\ndata: {\"a\":1}\n\n: alive\n\nid: 2\r\ndata: b\r\n\r\n";
        for size in 1..stream.len() {
            let mut events = Events::default();
            let pieces = stream.chunks(size).flat_map(|piece| events.feed(piece).unwrap());
            assert_eq!(pieces.collect::<Vec<_>>(), ["{\"a\":1}", "b"], "{size}");
        }
        assert!(Events::default().feed(&vec![b'x'; LIMIT + 1]).is_err());
    }
}
