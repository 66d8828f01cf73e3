// Package events tells containerd what happens to tasks.
//
// An event is put into a queue and never waited for: a containerd that is slow, restarting or gone holds up no task. One goroutine sends them
// in the order they came, so that of each task, and of all, an exit is never told before the start. What cannot be sent is tried again until
// it can be (so that one may arrive twice, when only the answer was lost), since an exit that containerd never hears of leaves a pod running for ever. The queue is bounded; when it is full the oldest
// event of little use makes room, and an exit goes last.
package events

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	defaultQueue = 4096
	sendTime     = 5 * time.Second
	firstPause   = 100 * time.Millisecond
	maxPause     = 5 * time.Second
)

// Config says where events go. With neither address nor program they go nowhere, as with CRI-O, which asks for them instead.
type Config struct {
	Namespace     string
	TTRPCAddress  string // path of containerd's ttrpc socket, with or without unix://
	Address       string // of containerd, for PublishBinary
	PublishBinary string // used when there is no TTRPCAddress
	Queue         int    // events kept while containerd is away; 0 is 4096
	Log           *slog.Logger
}

// Publisher sends events.
type Publisher struct {
	c      Config
	send   func(context.Context, *types.Envelope) error
	client *ttrpc.Client // used by the one sender only

	mu    sync.Mutex
	queue []*types.Envelope
	lost  int
	wake  chan struct{} // has room for one: the queue is not empty
	last  chan struct{} // closed by Close: end when the queue is empty
	quit  context.CancelFunc
	done  chan struct{}
	once  sync.Once
}

// New makes a publisher. Nothing is connected before the first event.
func New(c Config) *Publisher {
	if c.Queue <= 0 {
		c.Queue = defaultQueue
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	ctx, quit := context.WithCancel(context.Background()) // ends with Close
	p := &Publisher{c: c, wake: make(chan struct{}, 1), last: make(chan struct{}), quit: quit, done: make(chan struct{})}
	switch {
	case c.TTRPCAddress != "":
		p.send = p.forward
	case c.PublishBinary != "" && c.Address != "":
		p.send = p.runBinary
	}
	go p.work(ctx)
	return p
}

// Topic is the topic of an event of a task; false for other messages.
func Topic(event proto.Message) (string, bool) {
	switch event.(type) {
	case *eventtypes.TaskCreate:
		return "/tasks/create", true
	case *eventtypes.TaskStart:
		return "/tasks/start", true
	case *eventtypes.TaskDelete:
		return "/tasks/delete", true
	case *eventtypes.TaskExit:
		return "/tasks/exit", true
	case *eventtypes.TaskOOM:
		return "/tasks/oom", true
	case *eventtypes.TaskExecAdded:
		return "/tasks/exec-added", true
	case *eventtypes.TaskExecStarted:
		return "/tasks/exec-started", true
	case *eventtypes.TaskPaused:
		return "/tasks/paused", true
	case *eventtypes.TaskResumed:
		return "/tasks/resumed", true
	case *eventtypes.TaskCheckpointed:
		return "/tasks/checkpointed", true
	}
	return "", false
}

// Publish queues an event of a task (containerd.events.Task…). It does not block. An error says that the message is no such event.
func (p *Publisher) Publish(event proto.Message) error {
	topic, ok := Topic(event)
	if !ok {
		return fmt.Errorf("publishing %T: not an event of a task", event)
	}
	data, err := proto.Marshal(event)
	if err != nil {
		return fmt.Errorf("publishing %s: %w", topic, err)
	}
	if p.send == nil {
		return nil
	}
	p.put(&types.Envelope{Timestamp: timestamppb.Now(), Namespace: p.c.Namespace, Topic: topic,
		// containerd's type URL is the name alone.
		Event: &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: data}})
	return nil
}

func (p *Publisher) put(e *types.Envelope) {
	p.mu.Lock()
	if len(p.queue) >= p.c.Queue {
		p.dropOne()
	}
	p.queue = append(p.queue, e)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// dropOne drops the oldest event whose loss can be borne, or the oldest. A guest makes up as many events of a lack of memory as it likes: they
// go before the ends of processes. The first in the queue may be under way; it is dropped last.
func (p *Publisher) dropOne() {
	at := min(1, len(p.queue)-1)
	for _, last := range [][]string{{"/tasks/exit", "/tasks/delete", "/tasks/oom"}, {"/tasks/exit", "/tasks/delete"}} {
		i := slices.IndexFunc(p.queue[at:], func(e *types.Envelope) bool { return !slices.Contains(last, e.Topic) })
		if i >= 0 {
			at += i
			break
		}
	}
	p.lost++
	p.c.Log.Warn("an event is lost: containerd does not take them", "topic", p.queue[at].Topic, "lost", p.lost)
	p.queue = append(p.queue[:at], p.queue[at+1:]...)
}

// head is the event to send next; nil when the queue is empty.
func (p *Publisher) head() *types.Envelope {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return nil
	}
	return p.queue[0]
}

// sent takes an event out of the queue, unless dropOne was faster.
func (p *Publisher) sent(e *types.Envelope) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 && p.queue[0] == e {
		p.queue[0] = nil
		p.queue = p.queue[1:]
	}
}

// work sends until Close.
func (p *Publisher) work(ctx context.Context) {
	defer close(p.done)
	defer func() {
		if p.client != nil {
			p.client.Close()
		}
	}()
	pause := firstPause
	for {
		e := p.head()
		if e == nil {
			select {
			case <-p.wake:
			case <-p.last:
				if p.head() == nil {
					return
				}
			case <-ctx.Done():
				return
			}
			continue
		}
		err := p.send(ctx, e)
		if err == nil || refused(err) {
			if err != nil {
				p.c.Log.Error("containerd refused an event", "topic", e.Topic, "error", err)
			}
			p.sent(e)
			pause = firstPause
			continue
		}
		p.c.Log.Debug("an event is sent again later", "topic", e.Topic, "error", err, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// refused says that sending the same again would change nothing.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.Unimplemented, codes.PermissionDenied, codes.NotFound, codes.AlreadyExists:
		return true
	}
	return false
}

// forward sends one event over ttrpc. A connection that failed is not used again.
func (p *Publisher) forward(ctx context.Context, e *types.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	if p.client == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", strings.TrimPrefix(p.c.TTRPCAddress, "unix://"))
		if err != nil {
			return fmt.Errorf("connecting to containerd for events: %w", err)
		}
		p.client = ttrpc.NewClient(conn)
	}
	_, err := events.NewTTRPCEventsClient(p.client).Forward(ctx, &events.ForwardRequest{Envelope: e})
	if err != nil && !refused(err) {
		p.client.Close()
		p.client = nil
	}
	return err
}

// runBinary sends one event with containerd's command publish.
func (p *Publisher) runBinary(ctx context.Context, e *types.Envelope) error {
	data, err := proto.Marshal(e.Event)
	if err != nil {
		return fmt.Errorf("publishing %s: %w", e.Topic, err)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.c.PublishBinary, "--address", p.c.Address, "publish", "--topic", e.Topic, "--namespace", e.Namespace)
	cmd.Stdin, cmd.Stdout, cmd.WaitDelay = bytes.NewReader(data), io.Discard, time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("publishing %s with %s: %w", e.Topic, p.c.PublishBinary, err)
	}
	return nil
}

// Close sends what is queued, at most until ctx ends, and stops. An error says how many events were not sent.
func (p *Publisher) Close(ctx context.Context) error {
	p.once.Do(func() { close(p.last) })
	select {
	case <-p.done:
	case <-ctx.Done():
		p.quit()
		<-p.done
	}
	p.quit()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.queue); n > 0 {
		return fmt.Errorf("sending the last %d events to containerd: %w", n, ctx.Err())
	}
	return nil
}
