//! `PagingService`: who is told, and what did not get through.

use crate::runtime::Handle;
use muster_proto::v1;
use muster_proto::v1::paging_service_server::PagingService;
use tonic::{Request, Response, Status};

/// Answers operators about receivers.
#[derive(Debug, Clone)]
pub struct PagingApi {
    #[expect(dead_code, reason = "the methods below come next")]
    handle: Handle,
}

impl PagingApi {
    /// Reads and acts through the loop.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

#[tonic::async_trait]
impl PagingService for PagingApi {
    async fn list_receivers(
        &self,
        _request: Request<v1::ListReceiversRequest>,
    ) -> Result<Response<v1::ListReceiversResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn test_receiver(
        &self,
        _request: Request<v1::TestReceiverRequest>,
    ) -> Result<Response<v1::TestReceiverResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn list_dead_letters(
        &self,
        _request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn resend_page(
        &self,
        _request: Request<v1::ResendPageRequest>,
    ) -> Result<Response<v1::ResendPageResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }
}
