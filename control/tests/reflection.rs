//! Reflection, in both versions that tools speak.

mod common;

use common::Rig;
use prost::Message;
use tonic_reflection::pb::{v1, v1alpha};

const SERVICES: [&str; 5] = [
    "forebay.v1.Files",
    "forebay.v1.Jobs",
    "forebay.v1.Node",
    "forebay.v1.Sessions",
    "forebay.v1.Silos",
];

macro_rules! reflection {
    ($test:ident, $version:ident) => {
        #[tokio::test]
        async fn $test() {
            use $version::server_reflection_client::ServerReflectionClient;
            use $version::server_reflection_request::MessageRequest;
            use $version::server_reflection_response::MessageResponse;
            let rig = Rig::new().await;
            let mut client = ServerReflectionClient::new(rig.channel().await);
            let mut ask = async |message_request| {
                let request = $version::ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(message_request),
                };
                let stream = client.server_reflection_info(tokio_stream::once(request)).await;
                let answer = stream.expect("answered").into_inner().message().await;
                answer.expect("answered").expect("one answer").message_response.expect("one")
            };
            let MessageResponse::ListServicesResponse(list) =
                ask(MessageRequest::ListServices(String::new())).await
            else {
                panic!("another answer");
            };
            let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
                assert!(names.iter().any(|name| name == service), "{service} in {names:?}");
            }
            let symbol = "forebay.v1.PromoteRequest".to_owned();
            let MessageResponse::FileDescriptorResponse(files) =
                ask(MessageRequest::FileContainingSymbol(symbol)).await
            else {
                panic!("another answer");
            };
            let file =
                prost_types::FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice());
            assert_eq!(file.expect("a descriptor").name(), "forebay/v1/files.proto");
        }
    };
}

reflection!(version_one_lists_the_services, v1);
reflection!(the_alpha_lists_the_services, v1alpha);
