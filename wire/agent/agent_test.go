package agent

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

type health struct{}

func (health) Check(_ context.Context, r *CheckRequest) (*HealthCheckResponse, error) {
	return &HealthCheckResponse{Status: HealthCheckResponse_SERVING}, nil
}

func (health) Version(context.Context, *CheckRequest) (*VersionCheckResponse, error) {
	return &VersionCheckResponse{GrpcVersion: "0.0.1", AgentVersion: "test"}, nil
}

// TestServiceNames calls by the names on the wire, as a foreign shim does.
func TestServiceNames(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	RegisterHealthService(server, health{})
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	var reply HealthCheckResponse
	if err := client.Call(ctx, "grpc.Health", "Check", &CheckRequest{}, &reply); err != nil || reply.Status != HealthCheckResponse_SERVING {
		t.Errorf("Check: %v, %v", &reply, err)
	}
	version, err := NewHealthClient(client).Version(ctx, &CheckRequest{})
	if err != nil || version.GrpcVersion != "0.0.1" {
		t.Errorf("Version: %v, %v", version, err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	<-done
}

func TestNames(t *testing.T) {
	service := File_wire_agent_agent_proto.Services().ByName("AgentService")
	if service == nil || service.FullName() != "grpc.AgentService" {
		t.Fatalf("service is %v", service)
	}
	if got := service.Methods().Len(); got != 43 {
		t.Errorf("%d methods, expected 43", got)
	}
	for m, want := range map[proto.Message]string{
		&CreateContainerRequest{}: "grpc.CreateContainerRequest",
		&VolumeStatsResponse{}:    "grpc.VolumeStatsResponse",
		&Spec{}:                   "grpc.Spec",
		&Interface{}:              "types.Interface",
	} {
		if got := string(m.ProtoReflect().Descriptor().FullName()); got != want {
			t.Errorf("%T is %s, expected %s", m, got, want)
		}
	}
}

// TestOddNumbers pins the field numbers that do not follow their order.
func TestOddNumbers(t *testing.T) {
	tag := func(n protowire.Number, w protowire.Type) []byte { return protowire.AppendTag(nil, n, w) }
	data := protowire.AppendBytes(tag(2, protowire.BytesType), []byte("x"))
	group := protowire.AppendVarint(append(protowire.AppendVarint(tag(2, protowire.VarintType), 7), tag(3, protowire.VarintType)...), 1)
	errno := protowire.AppendVarint(tag(3, protowire.VarintType), 38)
	for _, tt := range []struct {
		m    proto.Message
		want []byte
	}{
		{&ReseedRandomDevRequest{Data: []byte("x")}, data},
		{&FSGroup{GroupId: 7, GroupChangePolicy: FSGroupChangePolicy_OnRootMismatch}, group},
		{&LinuxSyscall{ErrnoRet: &LinuxSyscall_Errnoret{Errnoret: 38}}, errno},
	} {
		got, err := proto.MarshalOptions{Deterministic: true}.Marshal(tt.m)
		if err != nil || !bytes.Equal(got, tt.want) {
			t.Errorf("%T is %x, %v, expected %x", tt.m, got, err, tt.want)
		}
	}
}

// TestPresence: the policy sees null for an absent optional field.
func TestPresence(t *testing.T) {
	zero := uint64(0)
	got, err := proto.Marshal(&MemAgentMemcgConfig{PeriodSecs: &zero})
	if err != nil || len(got) == 0 {
		t.Errorf("an explicit zero was dropped: %x, %v", got, err)
	}
}
