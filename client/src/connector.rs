//! How a session gets another channel when it has lost one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use extent::{Error, Kind, Result};
use rdma::Channel;

use crate::{Endpoint, Options};

/// Makes channels to one node, over one or several ways to it: its *rails*.
pub trait Connector: Send {
    /// How many rails there are: at least one.
    fn rails(&self) -> usize {
        1
    }

    /// What a rail is called in logs and reports.
    fn name(&self, rail: usize) -> String;

    /// Begins to connect over a rail. Must not block for long: [`crate::Session::poll`] calls it.
    fn dial(&mut self, rail: usize) -> Dial;
}

/// How connecting goes.
pub enum Dial {
    /// It is over.
    Done(Result<Box<dyn Channel>>),
    /// The outcome comes through here.
    UnderWay(Receiver<Result<Box<dyn Channel>>>),
}

/// Connections that may be under way at a time: of those that were given up, threads may still hang
/// in the system.
const MOST_DIALS: usize = 8;

/// Connects to an endpoint, each time in a thread that ends with that.
pub(crate) struct EndpointConnector {
    rails: Vec<Endpoint>,
    options: Options,
    /// Every thread holds one.
    under_way: Arc<()>,
}

impl EndpointConnector {
    pub(crate) fn new(endpoint: &Endpoint, options: &Options) -> Self {
        Self {
            rails: endpoint.rails().to_vec(),
            options: options.clone(),
            under_way: Arc::default(),
        }
    }
}

impl Connector for EndpointConnector {
    fn rails(&self) -> usize {
        self.rails.len()
    }

    fn name(&self, rail: usize) -> String {
        self.rails[rail].to_string()
    }

    fn dial(&mut self, rail: usize) -> Dial {
        if Arc::strong_count(&self.under_way) > MOST_DIALS {
            return Dial::Done(Err(Kind::Disconnected.error(format!(
                "{MOST_DIALS} connections were begun and do not end: does the system find the \
                 node's name?"
            ))));
        }
        let under_way = Arc::clone(&self.under_way);
        let (endpoint, options) = (self.rails[rail].clone(), self.options.clone());
        let (sender, receiver) = sync_channel(1);
        let connect = move || {
            // A session that is over does not want it any more, and drops it here.
            let _ = sender.send(endpoint.channel(&options));
            drop(under_way);
        };
        match thread::Builder::new().name("forebay-dial".into()).spawn(connect) {
            Ok(_) => Dial::UnderWay(receiver),
            Err(error) => Dial::Done(Err(Error::io("starting a thread to connect", error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_that_hang_do_not_pile_up() {
        let endpoint = Endpoint::Unix("/nobody/listens/here".into());
        let mut connector = EndpointConnector::new(&endpoint, &Options::default());
        let hanging: Vec<_> = (0..MOST_DIALS).map(|_| Arc::clone(&connector.under_way)).collect();
        let Dial::Done(Err(error)) = connector.dial(0) else { panic!("one more hangs, too") };
        assert!(error.context().contains("do not end"), "{error}");
        drop(hanging);
        let Dial::UnderWay(outcome) = connector.dial(0) else { panic!("there is room again") };
        let error = outcome.recv().expect("an outcome").err().expect("nobody listens");
        assert_eq!(error.kind(), Kind::Disconnected);
    }
}
