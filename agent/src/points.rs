//! Points at which a test can make the agent die (see `bixi_offload::failpoint`).

use bixi_offload::failpoint::Point;

/// An action is about to be done.
pub const BEFORE_ACTION: Point = Point::of_service("agent.before-action", 64);
/// An action was done; the driver does not know.
pub const AFTER_ACTION: Point = Point::of_service("agent.after-action", 65);
/// A card is about to be asked for something.
pub const BEFORE_CARD: Point = Point::of_service("agent.before-card", 66);
/// A VMM waits in its jail; nobody knows.
pub const AFTER_SPAWN: Point = Point::of_service("agent.after-spawn", 67);
/// A start is written down, and not permitted.
pub const BEFORE_PERMISSION: Point = Point::of_service("agent.before-permission", 68);
/// A start is permitted; the driver does not know.
pub const AFTER_PERMISSION: Point = Point::of_service("agent.after-permission", 69);
/// A VMM is about to be stopped.
pub const BEFORE_STOP: Point = Point::of_service("agent.before-stop", 70);

/// All of them.
pub const ALL: [Point; 7] = [
    BEFORE_ACTION,
    AFTER_ACTION,
    BEFORE_CARD,
    AFTER_SPAWN,
    BEFORE_PERMISSION,
    AFTER_PERMISSION,
    BEFORE_STOP,
];
