//! The dual-write engine: what keeps data right while it moves. `engine` is the front door; `lane` and `gate` are pure.

pub mod adopt;
pub mod effect;
pub mod engine;
pub mod gate;
pub mod journal;
pub mod lane;
pub mod state;

pub use engine::{Engine, EngineParts, EngineWaiter, Guard, Load, Message, Peers, Plan, ReplyPort, ReplyTo, Target, refusal_of};
