//! The dual-write engine: what keeps data right while it moves. `engine` is the front door; `lane`, `gate`, `effect` and `install` are pure.

pub mod adopt;
mod audience;
mod channels;
mod copy;
mod copying;
pub mod effect;
mod engine;
mod feed;
pub mod gate;
mod glob;
mod guard;
pub mod history;
pub mod install;
pub mod journal;
pub mod lane;
mod message;
mod operation;
mod pieces;
mod presence;
mod probe;
mod push;
mod shadow;
mod slow_log;
pub mod state;
mod subscriptions;
pub mod traffic;
mod turn;

pub use audience::Audience;
pub use channels::{Subscribing, Unconfirmed};
pub use copying::Copying;
pub use engine::{Caller, Engine, EngineParts, EngineWaiter, Load, ReplyPort, ReplyTo, Target, refusal_of};
pub use guard::Guard;
pub use message::{Message, Peers, Way};
pub use push::{Family, Push, Verb};
pub use shadow::Shadowing;
pub use subscriptions::{Asked, Ear, Membership};
