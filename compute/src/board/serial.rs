//! COM1: a 16550 at port 0x3F8, line 4.
//!
//! The register model is `vm-superio`'s. This module adds what a console needs: output that never waits, and input that
//! is refused, not lost, while the receive FIFO is full.
//!
//! vCPU threads call the registers; console tasks call [`Serial::offer`] and wait for [`Serial::room`].

use crate::bus::PortDevice;
use crate::console::output::Writer;
use crate::device::{Device, RestoreError};
use crate::interrupts::Line;
use crate::log_limit::LogLimit;
use bixi_api::compute::DeviceDescription;
use bixi_api::state::{Declared, Movable, Payload};
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};

/// The kind of this device's state.
pub const KIND: &str = "serial-16550";
const VERSION: u32 = 1;

/// The first of its eight ports.
pub const PORT: u16 = 0x3f8;
/// Its interrupt line.
pub const LINE: u32 = 4;
const MODEM_CONTROL: u64 = 4;

/// The state of a 16550 as it travels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SerialPayload {
    /// Divisor latch, low and high byte, enable, identification, line control, line status, modem control, modem
    /// status and scratch registers, in this order.
    #[prost(bytes = "vec", tag = "1")]
    pub registers: Vec<u8>,
    /// The receive FIFO, oldest byte first.
    #[prost(bytes = "vec", tag = "2")]
    pub received: Vec<u8>,
}

struct Edge(Arc<dyn Line>);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

struct RoomEvents(Arc<Notify>);

impl SerialEvents for RoomEvents {
    fn buffer_read(&self) {
        self.0.notify_waiters();
    }
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {}
}

/// The first serial port.
pub struct Serial {
    uart: Mutex<Uart<Edge, RoomEvents, Writer>>,
    line: Arc<dyn Line>,
    output: Writer,
    room: Arc<Notify>,
    limit: LogLimit,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("state", &self.uart().state()).finish_non_exhaustive()
    }
}

impl Serial {
    /// A serial port that writes to `output` and interrupts by `line`.
    #[must_use]
    pub fn new(output: Writer, line: Arc<dyn Line>) -> Self {
        let room = Arc::new(Notify::new());
        let events = RoomEvents(Arc::clone(&room));
        let uart = Uart::with_events(Edge(Arc::clone(&line)), events, output.clone());
        Self { uart: Mutex::new(uart), line, output, room, limit: LogLimit::default() }
    }

    fn uart(&self) -> MutexGuard<'_, Uart<Edge, RoomEvents, Writer>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers input to the guest. Returns how many bytes, from the front, it took; the caller keeps the rest and offers
    /// it again after [`Serial::room`].
    #[must_use]
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart();
        let taken = uart.fifo_capacity().min(bytes.len());
        if taken == 0 {
            return 0;
        }
        // Cannot be full, since the capacity was asked under the same lock; in loop-back mode the port takes nothing.
        uart.enqueue_raw_bytes(&bytes[..taken]).unwrap_or(0)
    }

    /// Notified when the guest has read a byte.
    #[must_use]
    pub fn room(&self) -> &Notify {
        &self.room
    }

    fn replace(&self, state: &SerialState) -> bool {
        let events = RoomEvents(Arc::clone(&self.room));
        let edge = Edge(Arc::clone(&self.line));
        match Uart::from_state(state, edge, events, self.output.clone()) {
            Ok(uart) => {
                *self.uart() = uart;
                true
            }
            Err(_) => false,
        }
    }
}

impl PortDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.uart();
        for (register, byte) in (offset..8).zip(data) {
            *byte = uart.read(register as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.uart();
        for (register, byte) in (offset..8).zip(data) {
            if register == MODEM_CONTROL {
                // It may have left loop-back mode, in which the port takes no input.
                self.room.notify_waiters();
            }
            if let Err(error) = uart.write(register as u8, *byte)
                && let Some(suppressed) = self.limit.pass()
            {
                tracing::warn!(?error, suppressed, "the serial port lost a byte");
            }
        }
    }
}

impl Movable for Serial {
    fn declare(&self) -> Declared {
        let state = self.uart().state();
        let registers = vec![
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ];
        let payload = SerialPayload { registers, received: state.in_buffer };
        Declared::State(Payload::new(KIND, VERSION, &payload))
    }
}

impl Device for Serial {
    fn describe(&self) -> Option<DeviceDescription> {
        None
    }

    /// Registers go back to power-on; what was typed and not read yet stays, since input is never lost.
    fn reset(&self) {
        let received = self.uart().state().in_buffer;
        let line_status = SerialState::default().line_status | u8::from(!received.is_empty());
        let state = SerialState { in_buffer: received, line_status, ..SerialState::default() };
        self.replace(&state);
    }

    fn restore(&self, payload: &Payload) -> Result<(), RestoreError> {
        let payload: SerialPayload = payload.read(KIND, VERSION)?;
        let wrong =
            |what: &str| RestoreError::Value { device: KIND.to_owned(), what: what.to_owned() };
        let registers: [u8; 9] =
            payload.registers.try_into().map_err(|_| wrong("another number of registers"))?;
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = registers;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: payload.received,
        };
        if self.replace(&state) { Ok(()) } else { Err(wrong("a receive FIFO that overflows")) }
    }

    /// An interrupt that was raised and not taken before the move is an edge that the new interrupt controller has not
    /// seen: raise it again.
    fn resume(&self) {
        let state = self.uart().state();
        let none = 1;
        if state.interrupt_identification & none == 0 {
            self.line.pulse();
        }
    }
}
