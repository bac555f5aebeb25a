//! The messages of vhost-user as bytes, and back (QEMU's docs/interop/vhost-user).
//!
//! Request codes and payload layouts are those of the `vhost` crate; the header is our own, because the crate keeps
//! its private. Pure: descriptors travel beside the bytes and are only counted here.
//!
//! Invariants: whatever the bytes, decoding returns a request or an error; a payload is exactly as long as its kind
//! allows; nothing is allocated beyond the message's own size.

use crate::memory::RegionDescriptor;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserInflight, VhostUserLog, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

/// Protocol feature bits as masks (vhost-user, "Protocol features").
pub mod protocol {
    use vhost::vhost_user::message::VhostUserProtocolFeatures as Bits;

    /// Several queues.
    pub const MQ: u64 = Bits::MQ.bits();
    /// The dirty log is shared memory.
    pub const LOG_SHMFD: u64 = Bits::LOG_SHMFD.bits();
    /// A request may ask for an acknowledgement.
    pub const REPLY_ACK: u64 = Bits::REPLY_ACK.bits();
    /// The front end may tell its MTU.
    pub const MTU: u64 = Bits::MTU.bits();
    /// The back end may send requests of its own.
    pub const BACKEND_REQ: u64 = Bits::BACKEND_REQ.bits();
    /// The configuration space can be read and written.
    pub const CONFIG: u64 = Bits::CONFIG.bits();
    /// The in-flight record is shared memory.
    pub const INFLIGHT_SHMFD: u64 = Bits::INFLIGHT_SHMFD.bits();
    /// The device can be reset.
    pub const RESET_DEVICE: u64 = Bits::RESET_DEVICE.bits();
    /// Memory regions can be added and removed one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = Bits::CONFIGURE_MEM_SLOTS.bits();
    /// The device's virtio status is told and asked.
    pub const STATUS: u64 = Bits::STATUS.bits();
}

/// Bytes of a message header.
pub const HEADER_LEN: usize = 12;
/// No payload is longer, in bytes.
pub const MAX_PAYLOAD: usize = 4096;
/// The most descriptors that travel with one message; more are closed by the kernel.
pub const MAX_FDS: usize = 32;
/// The most bytes of configuration space that one message carries.
pub const MAX_CONFIG: usize = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A header of another protocol version.
    #[error("vhost-user header flags {0:#x}: this is not protocol version 1")]
    Version(u32),
    /// A payload longer than [`MAX_PAYLOAD`].
    #[error("request {request} announces {size} bytes of payload, more than {MAX_PAYLOAD}")]
    TooLong {
        /// The request code.
        request: u32,
        /// The announced size in bytes.
        size: u32,
    },
    /// A request that this release does not know.
    #[error("request {0} is not known")]
    Unknown(u32),
    /// A payload that does not fit the request.
    #[error("request {request} with a payload of {size} bytes that does not fit it")]
    Payload {
        /// The request code.
        request: u32,
        /// The payload's size in bytes.
        size: usize,
    },
    /// A reply where a request should be, or one to another request.
    #[error("message {0} is not what was waited for")]
    Unexpected(u32),
}

/// A message header, in native byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The request code.
    pub request: u32,
    /// Version in bits 0 and 1, [reply](Header::is_reply) in bit 2, [need-reply](Header::needs_reply) in bit 3.
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

impl Header {
    /// Reads a header and checks its version and size.
    ///
    /// # Errors
    /// Another version, or a payload longer than [`MAX_PAYLOAD`].
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, CodecError> {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let header = Self { request: word(0), flags: word(4), size: word(8) };
        if header.flags & VERSION_MASK != VERSION {
            return Err(CodecError::Version(header.flags));
        }
        if header.size as usize > MAX_PAYLOAD {
            return Err(CodecError::TooLong { request: header.request, size: header.size });
        }
        Ok(header)
    }

    /// The header as bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    /// Whether this is a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & REPLY != 0
    }

    /// Whether the sender waits for an acknowledgement.
    pub fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A vring's index and one number: its size, base or whether it is enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringState {
    /// The queue.
    pub index: u32,
    /// The number.
    pub num: u32,
}

/// Where a vring is, in addresses of the front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddr {
    /// The queue.
    pub index: u32,
    /// Bit 0 (VHOST_VRING_F_LOG): writes of the used ring are logged.
    pub flags: u32,
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// The guest address that stands for the used ring in the log.
    pub log: u64,
}

/// VHOST_VRING_F_LOG in [`VringAddr::flags`].
pub const VRING_LOG: u32 = 1;

/// A vring's index, and whether a descriptor comes with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringFd {
    /// The queue.
    pub index: u8,
    /// Without a descriptor, the side that would be notified polls.
    pub has_fd: bool,
}

/// A part of a file: the log, or its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// The in-flight record and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightArea {
    /// Where it is in its file.
    pub area: Area,
    /// Queues it has room for.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
}

/// A part of the configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// First byte.
    pub offset: u32,
    /// VHOST_SET_CONFIG_TYPE: 0 is by the driver, 1 by migration.
    pub flags: u32,
    /// The bytes; those of a request to read have no meaning.
    pub bytes: Vec<u8>,
}

/// A request of the front end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // each is the request of the same name in the vhost-user specification
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<RegionDescriptor>),
    SetLogBase(Area),
    SetLogFd,
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    GetVringBase(VringState),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    NetSetMtu(u64),
    SetBackendReqFd,
    GetConfig(Config),
    SetConfig(Config),
    GetInflightFd(InflightArea),
    SetInflightFd(InflightArea),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionDescriptor),
    RemMemReg(RegionDescriptor),
    SetStatus(u64),
    GetStatus,
}

/// A reply of the back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A number, or an acknowledgement: 0 is success.
    U64(u64),
    /// GET_VRING_BASE.
    VringState(VringState),
    /// GET_CONFIG; no bytes mean failure.
    Config(Config),
    /// GET_INFLIGHT_FD; a size of 0 means failure, else one descriptor comes with it.
    Inflight(InflightArea),
}

impl Request {
    /// Reads the request that `header` announces and `payload` carries.
    ///
    /// # Errors
    /// An unknown request, or a payload that does not fit.
    pub fn decode(header: &Header, payload: &[u8]) -> Result<Self, CodecError> {
        if header.is_reply() {
            return Err(CodecError::Unexpected(header.request));
        }
        let code = FrontendReq::try_from(header.request)
            .map_err(|_| CodecError::Unknown(header.request))?;
        decode_payload(code, payload)
            .ok_or(CodecError::Payload { request: header.request, size: payload.len() })?
    }

    /// The request's code.
    pub fn code(&self) -> FrontendReq {
        use FrontendReq as C;
        match self {
            Self::GetFeatures => C::GET_FEATURES,
            Self::SetFeatures(_) => C::SET_FEATURES,
            Self::SetOwner => C::SET_OWNER,
            Self::ResetOwner => C::RESET_OWNER,
            Self::SetMemTable(_) => C::SET_MEM_TABLE,
            Self::SetLogBase(_) => C::SET_LOG_BASE,
            Self::SetLogFd => C::SET_LOG_FD,
            Self::SetVringNum(_) => C::SET_VRING_NUM,
            Self::SetVringAddr(_) => C::SET_VRING_ADDR,
            Self::SetVringBase(_) => C::SET_VRING_BASE,
            Self::GetVringBase(_) => C::GET_VRING_BASE,
            Self::SetVringKick(_) => C::SET_VRING_KICK,
            Self::SetVringCall(_) => C::SET_VRING_CALL,
            Self::SetVringErr(_) => C::SET_VRING_ERR,
            Self::GetProtocolFeatures => C::GET_PROTOCOL_FEATURES,
            Self::SetProtocolFeatures(_) => C::SET_PROTOCOL_FEATURES,
            Self::GetQueueNum => C::GET_QUEUE_NUM,
            Self::SetVringEnable(_) => C::SET_VRING_ENABLE,
            Self::NetSetMtu(_) => C::NET_SET_MTU,
            Self::SetBackendReqFd => C::SET_BACKEND_REQ_FD,
            Self::GetConfig(_) => C::GET_CONFIG,
            Self::SetConfig(_) => C::SET_CONFIG,
            Self::GetInflightFd(_) => C::GET_INFLIGHT_FD,
            Self::SetInflightFd(_) => C::SET_INFLIGHT_FD,
            Self::ResetDevice => C::RESET_DEVICE,
            Self::GetMaxMemSlots => C::GET_MAX_MEM_SLOTS,
            Self::AddMemReg(_) => C::ADD_MEM_REG,
            Self::RemMemReg(_) => C::REM_MEM_REG,
            Self::SetStatus(_) => C::SET_STATUS,
            Self::GetStatus => C::GET_STATUS,
        }
    }

    /// The request as bytes, header first.
    pub fn encode(&self, need_reply: bool) -> Vec<u8> {
        let flags = VERSION | if need_reply { NEED_REPLY } else { 0 };
        let payload = match self {
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::SetLogFd
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::SetBackendReqFd
            | Self::ResetDevice
            | Self::GetMaxMemSlots
            | Self::GetStatus => Vec::new(),
            Self::SetFeatures(n)
            | Self::SetProtocolFeatures(n)
            | Self::NetSetMtu(n)
            | Self::SetStatus(n) => n.to_ne_bytes().to_vec(),
            Self::SetVringKick(ring) | Self::SetVringCall(ring) | Self::SetVringErr(ring) => {
                let no_fd = if ring.has_fd { 0 } else { VRING_NO_FD };
                (u64::from(ring.index) | no_fd).to_ne_bytes().to_vec()
            }
            Self::SetVringNum(s)
            | Self::SetVringBase(s)
            | Self::GetVringBase(s)
            | Self::SetVringEnable(s) => encode_vring_state(s),
            Self::SetVringAddr(a) => VhostUserVringAddr {
                index: a.index,
                flags: a.flags,
                descriptor: a.descriptors,
                used: a.used,
                available: a.available,
                log: a.log,
            }
            .as_slice()
            .to_vec(),
            Self::SetMemTable(regions) => {
                let mut bytes = VhostUserMemory::new(regions.len() as u32).as_slice().to_vec();
                for region in regions {
                    bytes.extend_from_slice(encode_region(region).as_slice());
                }
                bytes
            }
            Self::AddMemReg(region) | Self::RemMemReg(region) => {
                let mut bytes = vec![0; 8];
                bytes.extend_from_slice(encode_region(region).as_slice());
                bytes
            }
            Self::SetLogBase(area) => VhostUserLog::new(area.size, area.offset).as_slice().to_vec(),
            Self::GetConfig(config) | Self::SetConfig(config) => encode_config(config),
            Self::GetInflightFd(record) | Self::SetInflightFd(record) => encode_inflight(record),
        };
        message(self.code().into(), flags, payload)
    }
}

impl Reply {
    /// The reply to a request of this code as bytes, header first.
    pub fn encode(&self, request: u32) -> Vec<u8> {
        let payload = match self {
            Self::U64(n) => n.to_ne_bytes().to_vec(),
            Self::VringState(state) => encode_vring_state(state),
            Self::Config(config) => encode_config(config),
            Self::Inflight(record) => encode_inflight(record),
        };
        message(request, VERSION | REPLY, payload)
    }

    /// Reads the reply to a request of code `request`.
    ///
    /// # Errors
    /// A reply to something else, or a payload that does not fit.
    pub fn decode(
        request: FrontendReq,
        header: &Header,
        payload: &[u8],
    ) -> Result<Self, CodecError> {
        if header.request != u32::from(request) || !header.is_reply() {
            return Err(CodecError::Unexpected(header.request));
        }
        let reply = match request {
            FrontendReq::GET_VRING_BASE => decode_vring_state(payload).map(Self::VringState),
            FrontendReq::GET_CONFIG if payload.is_empty() => {
                Some(Self::Config(Config { offset: 0, flags: 0, bytes: Vec::new() }))
            }
            FrontendReq::GET_CONFIG => decode_config(payload).map(Self::Config),
            FrontendReq::GET_INFLIGHT_FD => decode_inflight(payload).map(Self::Inflight),
            // Some back ends answer SET_LOG_BASE without a payload.
            FrontendReq::SET_LOG_BASE if payload.is_empty() => Some(Self::U64(0)),
            _ => decode_u64(payload).map(Self::U64),
        };
        reply.ok_or(CodecError::Payload { request: header.request, size: payload.len() })
    }
}

/// Bit 8 of a SET_VRING_KICK, CALL or ERR: no descriptor comes with it.
const VRING_NO_FD: u64 = 1 << 8;

fn message(request: u32, flags: u32, payload: Vec<u8>) -> Vec<u8> {
    let mut bytes = Header { request, flags, size: payload.len() as u32 }.to_bytes().to_vec();
    bytes.extend_from_slice(&payload);
    bytes
}

/// `None` is a payload that does not fit; the inner error is an unknown request.
fn decode_payload(code: FrontendReq, payload: &[u8]) -> Option<Result<Request, CodecError>> {
    use FrontendReq as C;
    let empty = || payload.is_empty().then_some(());
    Some(Ok(match code {
        C::GET_FEATURES => empty().map(|()| Request::GetFeatures)?,
        C::SET_FEATURES => Request::SetFeatures(decode_u64(payload)?),
        C::SET_OWNER => empty().map(|()| Request::SetOwner)?,
        C::RESET_OWNER => empty().map(|()| Request::ResetOwner)?,
        C::SET_MEM_TABLE => Request::SetMemTable(decode_table(payload)?),
        C::SET_LOG_BASE => Request::SetLogBase(decode_log(payload)?),
        // QEMU's and DPDK's structures send a u64 along; it has no meaning.
        C::SET_LOG_FD => Request::SetLogFd,
        C::SET_VRING_NUM => Request::SetVringNum(decode_vring_state(payload)?),
        C::SET_VRING_ADDR => Request::SetVringAddr(decode_vring_addr(payload)?),
        C::SET_VRING_BASE => Request::SetVringBase(decode_vring_state(payload)?),
        C::GET_VRING_BASE => Request::GetVringBase(decode_vring_state(payload)?),
        C::SET_VRING_KICK => Request::SetVringKick(decode_vring_fd(payload)?),
        C::SET_VRING_CALL => Request::SetVringCall(decode_vring_fd(payload)?),
        C::SET_VRING_ERR => Request::SetVringErr(decode_vring_fd(payload)?),
        C::GET_PROTOCOL_FEATURES => empty().map(|()| Request::GetProtocolFeatures)?,
        C::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(decode_u64(payload)?),
        C::GET_QUEUE_NUM => empty().map(|()| Request::GetQueueNum)?,
        C::SET_VRING_ENABLE => Request::SetVringEnable(decode_vring_state(payload)?),
        C::NET_SET_MTU => Request::NetSetMtu(decode_u64(payload)?),
        C::SET_BACKEND_REQ_FD => empty().map(|()| Request::SetBackendReqFd)?,
        C::GET_CONFIG => Request::GetConfig(decode_config(payload)?),
        C::SET_CONFIG => Request::SetConfig(decode_config(payload)?),
        C::GET_INFLIGHT_FD => Request::GetInflightFd(decode_inflight(payload)?),
        C::SET_INFLIGHT_FD => Request::SetInflightFd(decode_inflight(payload)?),
        C::RESET_DEVICE => empty().map(|()| Request::ResetDevice)?,
        C::GET_MAX_MEM_SLOTS => empty().map(|()| Request::GetMaxMemSlots)?,
        C::ADD_MEM_REG => Request::AddMemReg(decode_single_region(payload)?),
        C::REM_MEM_REG => Request::RemMemReg(decode_single_region(payload)?),
        C::SET_STATUS => Request::SetStatus(decode_u64(payload)?),
        C::GET_STATUS => empty().map(|()| Request::GetStatus)?,
        other => return Some(Err(CodecError::Unknown(other.into()))),
    }))
}

/// A plain-data payload, if `bytes` are exactly one.
fn pod<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    let room = value.as_mut_slice();
    (room.len() == bytes.len()).then(|| room.copy_from_slice(bytes))?;
    Some(value)
}

fn decode_u64(payload: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(payload.try_into().ok()?))
}

fn decode_vring_state(payload: &[u8]) -> Option<VringState> {
    let state: VhostUserVringState = pod(payload)?;
    Some(VringState { index: state.index, num: state.num })
}

fn encode_vring_state(state: &VringState) -> Vec<u8> {
    VhostUserVringState::new(state.index, state.num).as_slice().to_vec()
}

fn decode_vring_addr(payload: &[u8]) -> Option<VringAddr> {
    let addr: VhostUserVringAddr = pod(payload)?;
    Some(VringAddr {
        index: addr.index,
        flags: addr.flags,
        descriptors: addr.descriptor,
        used: addr.used,
        available: addr.available,
        log: addr.log,
    })
}

fn decode_vring_fd(payload: &[u8]) -> Option<VringFd> {
    let word = decode_u64(payload)?;
    Some(VringFd { index: word as u8, has_fd: word & VRING_NO_FD == 0 })
}

fn decode_region(bytes: &[u8]) -> Option<RegionDescriptor> {
    let region: VhostUserMemoryRegion = pod(bytes)?;
    Some(RegionDescriptor {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
    })
}

fn encode_region(region: &RegionDescriptor) -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(region.guest_addr, region.size, region.user_addr, region.mmap_offset)
}

fn decode_table(payload: &[u8]) -> Option<Vec<RegionDescriptor>> {
    let (head, mut rest) = payload.split_at_checked(size_of::<VhostUserMemory>())?;
    let count = pod::<VhostUserMemory>(head)?.num_regions as usize;
    let each = size_of::<VhostUserMemoryRegion>();
    if count > MAX_FDS || rest.len() < count * each {
        return None;
    }
    // QEMU before 2.8 and some libraries send room for all eight regions whatever the count.
    rest = &rest[..count * each];
    rest.chunks_exact(each).map(decode_region).collect()
}

fn decode_single_region(payload: &[u8]) -> Option<RegionDescriptor> {
    if payload.len() != size_of::<VhostUserSingleMemoryRegion>() {
        return None;
    }
    decode_region(&payload[8..])
}

fn decode_log(payload: &[u8]) -> Option<Area> {
    let log: VhostUserLog = pod(payload)?;
    Some(Area { size: log.mmap_size, offset: log.mmap_offset })
}

fn decode_config(payload: &[u8]) -> Option<Config> {
    let (head, bytes) = payload.split_at_checked(size_of::<VhostUserConfig>())?;
    let config: VhostUserConfig = pod(head)?;
    let size = config.size as usize;
    // A front end may send fewer bytes along with a request to read than it asks for.
    if size > MAX_CONFIG || bytes.len() > size {
        return None;
    }
    let mut bytes = bytes.to_vec();
    bytes.resize(size, 0);
    Some(Config { offset: config.offset, flags: config.flags, bytes })
}

fn encode_config(config: &Config) -> Vec<u8> {
    let head = VhostUserConfig {
        offset: config.offset,
        size: config.bytes.len() as u32,
        flags: config.flags,
    };
    let mut bytes = head.as_slice().to_vec();
    bytes.extend_from_slice(&config.bytes);
    bytes
}

/// The C structure is padded to 24 bytes; some front ends pack it to 20.
const INFLIGHT_PACKED: usize = 20;

fn decode_inflight(payload: &[u8]) -> Option<InflightArea> {
    let mut padded = [0; size_of::<VhostUserInflight>()];
    if payload.len() != padded.len() && payload.len() != INFLIGHT_PACKED {
        return None;
    }
    padded[..payload.len()].copy_from_slice(payload);
    let record: VhostUserInflight = pod(&padded)?;
    Some(InflightArea {
        area: Area { size: record.mmap_size, offset: record.mmap_offset },
        queues: record.num_queues,
        queue_size: record.queue_size,
    })
}

fn encode_inflight(record: &InflightArea) -> Vec<u8> {
    // Written field by field: the padding of the C structure is not ours to leak.
    let mut bytes = Vec::with_capacity(size_of::<VhostUserInflight>());
    bytes.extend_from_slice(&record.area.size.to_ne_bytes());
    bytes.extend_from_slice(&record.area.offset.to_ne_bytes());
    bytes.extend_from_slice(&record.queues.to_ne_bytes());
    bytes.extend_from_slice(&record.queue_size.to_ne_bytes());
    bytes.resize(size_of::<VhostUserInflight>(), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(request: &Request) -> Vec<u8> {
        let bytes = request.encode(false);
        let header = Header::parse(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!((header.flags, header.size as usize), (1, bytes.len() - HEADER_LEN));
        bytes[HEADER_LEN..].to_vec()
    }

    fn decode(code: FrontendReq, payload: &[u8]) -> Result<Request, CodecError> {
        let header = Header { request: code.into(), flags: 1, size: payload.len() as u32 };
        Request::decode(&header, payload)
    }

    #[test]
    fn messages_have_the_bytes_of_the_c_structures() {
        assert_eq!(Request::GetFeatures.encode(true), [1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        let kick = |index, has_fd| payload(&Request::SetVringKick(VringFd { index, has_fd }));
        assert_eq!(kick(2, true), [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(kick(3, false), [3, 1, 0, 0, 0, 0, 0, 0]);
        let state = VringState { index: 1, num: 0x102 };
        assert_eq!(payload(&Request::SetVringNum(state)), [1, 0, 0, 0, 2, 1, 0, 0]);
        let region = RegionDescriptor { guest_addr: 1, size: 2, user_addr: 3, mmap_offset: 4 };
        let table = payload(&Request::SetMemTable(vec![region]));
        let words: Vec<u64> =
            table.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [1, 1, 2, 3, 4]);
        let words: Vec<u64> = payload(&Request::AddMemReg(region))
            .chunks(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0, 1, 2, 3, 4]);
        let addr = VringAddr { index: 1, flags: 2, descriptors: 3, used: 4, available: 5, log: 6 };
        let words: Vec<u64> = payload(&Request::SetVringAddr(addr))
            .chunks(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [2 << 32 | 1, 3, 4, 5, 6]);
        let config = Config { offset: 1, flags: 2, bytes: vec![9; 5] };
        let expected = [1, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 9, 9, 9, 9, 9];
        assert_eq!(payload(&Request::SetConfig(config)), expected);
        let area = Area { size: 7, offset: 8 };
        let record = InflightArea { area, queues: 1, queue_size: 128 };
        let bytes = payload(&Request::SetInflightFd(record));
        assert_eq!(bytes[..8], 7u64.to_ne_bytes());
        assert_eq!(bytes[16..], [1, 0, 128, 0, 0, 0, 0, 0]);
        // Both the padded and the packed form are read.
        for len in [20, 24] {
            let read = decode(FrontendReq::SET_INFLIGHT_FD, &bytes[..len]);
            assert_eq!(read, Ok(Request::SetInflightFd(record)));
        }
    }

    #[test]
    fn payloads_that_do_not_fit_are_refused() {
        for (code, sizes) in [
            (FrontendReq::GET_FEATURES, &[1usize, 8][..]),
            (FrontendReq::SET_FEATURES, &[0, 7, 9]),
            (FrontendReq::SET_MEM_TABLE, &[0, 7]),
            (FrontendReq::SET_VRING_ADDR, &[0, 39, 41]),
            (FrontendReq::ADD_MEM_REG, &[0, 32, 41]),
            (FrontendReq::GET_CONFIG, &[0, 11]),
            (FrontendReq::GET_INFLIGHT_FD, &[0, 16, 21]),
            (FrontendReq::SET_LOG_BASE, &[0, 8, 17]),
        ] {
            for size in sizes {
                let error = decode(code, &vec![0; *size]).unwrap_err();
                let request = code.into();
                assert_eq!(error, CodecError::Payload { request, size: *size });
            }
        }
        // More regions than descriptors can come with, and more than are there.
        for count in [33u32, 2] {
            let mut bytes = u64::from(count).to_ne_bytes().to_vec();
            bytes.resize(8 + 32, 0);
            assert!(decode(FrontendReq::SET_MEM_TABLE, &bytes).is_err());
        }
        // More configuration than there is, and more bytes than announced.
        for (size, len) in [(257u32, 257usize), (4, 5), (u32::MAX, 0)] {
            let mut bytes = [0u32.to_ne_bytes(), size.to_ne_bytes(), [0; 4]].concat();
            bytes.resize(12 + len, 0);
            assert!(decode(FrontendReq::GET_CONFIG, &bytes).is_err());
        }
        assert_eq!(decode(FrontendReq::IOTLB_MSG, &[]), Err(CodecError::Unknown(22)));
        let version = Header::parse(&[1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(version, Err(CodecError::Version(2)));
        let long = Header { request: 1, flags: 1, size: 4097 }.to_bytes();
        assert_eq!(Header::parse(&long), Err(CodecError::TooLong { request: 1, size: 4097 }));
    }
}
