//! The dual-write engine: what keeps data right while it moves. `engine` is the front door; `lane` and `gate` are pure.

pub mod adopt;
mod channels;
mod copy;
pub mod effect;
mod engine;
pub mod gate;
mod guard;
pub mod history;
pub mod journal;
pub mod lane;
mod message;
mod operation;
mod presence;
mod probe;
pub mod state;
pub mod traffic;

pub use channels::{Seat, Subscribing, Unconfirmed};
pub use engine::{Engine, EngineParts, EngineWaiter, Load, ReplyPort, ReplyTo, Target, refusal_of};
pub use guard::Guard;
pub use message::{Message, Peers};
