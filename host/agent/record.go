package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/policyinput"
)

// pendingBytes bounds what a recorder holds in memory until it is written.
const pendingBytes = 32 << 20

var errRecordFull = errors.New("the record is full")

// Recorder writes down what a guest is asked to do, as `cloister policy test` reads it: one JSON object {"kind": rule, "request": input}
// per line. It does not hold up requests: they are written behind their back, in the order in which they were sent.
//
// Beside the requests there is the line ContainerExited for each container whose end was waited for, as the guest tells its policy of it.
// Not in the record are the service Health, which no policy judges; SetPolicy and LoadPolicyFragment, which the policy before judges;
// the bytes of standard input and for random numbers; and what asks only and was asked before, with nothing else in between.
type Recorder struct {
	file *os.File
	left int64 // of the file, in bytes
	log  *slog.Logger
	// asked are the lines that need not be repeated now.
	asked map[string]bool

	mu      sync.Mutex
	queue   []recorded
	pending int // bytes in the queue
	closed  bool
	wake    chan struct{}
	done    chan struct{}
}

// recorded is a request as it was sent, or the answer to it.
type recorded struct {
	method            string
	request, response []byte
}

// NewRecorder begins a record in a file that it makes or empties, readable by its owner alone: requests may hold secrets of the pod. A
// record of more than most bytes ends there. The log is told once why a record ends before its time.
func NewRecorder(file string, most int64, log *slog.Logger) (*Recorder, error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("recording requests: %w", err)
	}
	r := &Recorder{file: f, left: most, log: log, asked: map[string]bool{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go r.run()
	return r, nil
}

// Interceptor lets the recorder see the calls of a client.
func (r *Recorder) Interceptor() ttrpc.UnaryClientInterceptor {
	return func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
		if req.Service != string(agentService().FullName()) || req.Method == "SetPolicy" || req.Method == "LoadPolicyFragment" {
			return invoke(ctx, req, resp)
		}
		r.add(recorded{method: req.Method, request: req.Payload})
		err := invoke(ctx, req, resp)
		if err == nil && req.Method == "WaitProcess" && resp.GetStatus().GetCode() == 0 {
			r.add(recorded{method: req.Method, request: req.Payload, response: append([]byte{}, resp.Payload...)})
		}
		return err
	}
}

// Close ends the record, once all is written.
func (r *Recorder) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.notify()
	<-r.done
}

func (r *Recorder) add(e recorded) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if r.pending += len(e.request) + len(e.response); r.pending > pendingBytes {
		r.closed = true
		r.log.Warn("the record of requests to the guest ends here", "file", r.file.Name(), "error", "requests come faster than they can be written")
	} else {
		r.queue = append(r.queue, e)
	}
	r.notify()
}

func (r *Recorder) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes what comes, until the recorder is closed or the first error.
func (r *Recorder) run() {
	defer close(r.done)
	defer r.file.Close()
	for {
		r.mu.Lock()
		list, closed := r.queue, r.closed
		r.queue = nil
		r.mu.Unlock()
		for _, e := range list {
			err := r.write(e)
			r.mu.Lock()
			r.pending -= len(e.request) + len(e.response)
			if err != nil {
				r.closed, r.queue = true, nil
			}
			r.mu.Unlock()
			if err != nil {
				r.log.Warn("the record of requests to the guest ends here", "file", r.file.Name(), "error", err)
				return
			}
		}
		if closed {
			return
		}
		<-r.wake
	}
}

// asks are the kinds of requests that change nothing, and which come over and over.
var asks = map[string]bool{
	"GetMetricsRequest": true, "GetOOMEventRequest": true, "GuestDetailsRequest": true, "ListInterfacesRequest": true,
	"ListRoutesRequest": true, "ReadStreamRequest": true, "StatsContainerRequest": true, "TtyWinResizeRequest": true,
	"VolumeStatsRequest": true, "WaitProcessRequest": true, "WriteStreamRequest": true,
}

func (r *Recorder) write(e recorded) error {
	kind, input, err := e.input()
	if err != nil || kind == "" {
		return err
	}
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(struct {
		Kind    string `json:"kind"`
		Request any    `json:"request"`
	}{kind, input}); err != nil {
		return err
	}
	if !asks[kind] {
		clear(r.asked)
	} else if r.asked[line.String()] {
		return nil
	} else {
		r.asked[line.String()] = true
	}
	if r.left -= int64(line.Len()); r.left < 0 {
		return errRecordFull
	}
	_, err = r.file.Write(line.Bytes())
	return err
}

// input is the rule that judges, and what it is shown; no rule is nothing to write down.
func (e *recorded) input() (kind string, input any, err error) {
	if e.response != nil {
		return e.exit()
	}
	m, err := newRequest(e.method)
	if err != nil {
		return "", nil, err
	}
	if err := proto.Unmarshal(e.request, m); err != nil {
		return "", nil, fmt.Errorf("reading a request %s: %w", e.method, err)
	}
	kind = policyinput.RuleName(m)
	if _, copied := m.(*pb.CopyFileRequest); !copied { // of a copy, policies are shown a digest
		withoutBytes(m.ProtoReflect())
	}
	input, err = policyinput.Value(m)
	return kind, input, err
}

// exit is the end of a container that was waited for.
func (e *recorded) exit() (kind string, input any, err error) {
	var req pb.WaitProcessRequest
	var resp pb.WaitProcessResponse
	if err := errors.Join(proto.Unmarshal(e.request, &req), proto.Unmarshal(e.response, &resp)); err != nil {
		return "", nil, fmt.Errorf("reading the end of a process: %w", err)
	}
	if exec := req.GetExecId(); exec != "" && exec != req.GetContainerId() {
		return "", nil, nil
	}
	return "ContainerExited", map[string]any{"container_id": req.GetContainerId(), "status": resp.GetStatus()}, nil
}

func withoutBytes(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if fd := fields.Get(i); fd.Kind() == protoreflect.BytesKind {
			m.Clear(fd)
		}
	}
}

func agentService() protoreflect.ServiceDescriptor {
	return pb.File_wire_agent_agent_proto.Services().ByName("AgentService")
}

// newRequest is an empty request of a method.
func newRequest(method string) (proto.Message, error) {
	md := agentService().Methods().ByName(protoreflect.Name(method))
	if md == nil {
		return nil, fmt.Errorf("the agent has no method %q", method)
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
	if err != nil {
		return nil, fmt.Errorf("the request of %s: %w", method, err)
	}
	return t.New().Interface(), nil
}
