package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cloister/cloister/layer"
)

// buildFunc is layer.Build.
type buildFunc func(ctx context.Context, tar io.Reader, out io.WriterAt, o layer.Options) (layer.Result, error)

// source is what a layer of an image is made of.
type source struct {
	Blob   string // digest in the content store
	DiffID string // of its tar, as the image's configuration says; may be empty
	Below  string // chain ID of the layers below, when DiffID is known
	Ahead  []source

	unreadable bool // by its media type: encrypted or sealed
}

type tarStream io.ReadCloser

// conversion is a layer being made for all that want it.
type conversion struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int // under the snapshotter's mu
	result  stored
	err     error
}

// convertBlob makes the layer of a blob, once for all who ask at the same time, and not at all if it is there. The result is pinned.
func (s *Snapshotter) convertBlob(ctx context.Context, src source) (stored, error) {
	if src.DiffID != "" {
		if l, ok := s.have(s.layerName(src.DiffID, src.Blob)); ok {
			return l, nil
		}
	}
	return s.convert(ctx, src.Blob, func(ctx context.Context) (tarStream, error) { return s.openLayer(ctx, src.Blob) })
}

// convert makes a layer. A key lets those who ask for the same share the work, which goes on until nobody wants it any more.
func (s *Snapshotter) convert(ctx context.Context, blob string, open func(context.Context) (tarStream, error)) (stored, error) {
	s.mu.Lock()
	c := s.running[blob]
	if c == nil || blob == "" {
		c = s.startConversion(ctx, blob, open)
	}
	c.waiters++
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-c.done:
		if c.err == nil {
			s.pins[c.result.Name]--
		}
	default:
		if c.waiters--; c.waiters == 0 {
			c.cancel()
			if s.running[blob] == c {
				delete(s.running, blob)
			}
		}
	}
	return stored{}, fmt.Errorf("making a layer: %w", context.Cause(ctx))
}

// startConversion starts the work. The caller holds mu.
func (s *Snapshotter) startConversion(ctx context.Context, blob string, open func(context.Context) (tarStream, error)) *conversion {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.life, cancel)
	c := &conversion{done: make(chan struct{}), cancel: cancel}
	if blob != "" {
		s.running[blob] = c
	}
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		defer stop()
		defer cancel()
		l, err := s.make(work, blob, open)
		s.mu.Lock()
		defer s.mu.Unlock()
		c.result, c.err = l, err
		if err == nil {
			s.pins[l.Name] += c.waiters - 1 // ingest pinned it once
		}
		if s.running[blob] == c {
			delete(s.running, blob)
		}
		close(c.done)
	}()
	return c
}

// make is the work itself; it waits for a slot.
func (s *Snapshotter) make(ctx context.Context, blob string, open func(context.Context) (tarStream, error)) (_ stored, err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return stored{}, fmt.Errorf("waiting to make a layer: %w", context.Cause(ctx))
	}
	tar, err := open(ctx)
	if err != nil {
		return stored{}, err
	}
	defer func() {
		if cerr := tar.Close(); err == nil && cerr != nil {
			s.log.Warn("closing a layer's blob", "error", cerr)
		}
	}()
	return s.ingest(ctx, blob, &bounded{r: tar, left: s.cfg.MaxLayerGiB << 30})
}

// bounded is a reader with an end that is an error.
type bounded struct {
	r    io.Reader
	left int64
}

var errTooLarge = errors.New("the layer is larger than max_layer_gib allows")

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// convertAhead starts the conversion of an image's other layers whose blobs are there. Their results are kept until the next
// Cleanup or until a snapshot has them.
func (s *Snapshotter) convertAhead(ctx context.Context, src source) {
	if !s.cfg.ReadAhead {
		return
	}
	for _, next := range src.Ahead {
		name := s.layerName(next.DiffID, next.Blob)
		s.mu.Lock()
		begun := s.ahead[name]
		s.ahead[name] = true
		s.mu.Unlock()
		if begun {
			continue
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
			defer cancel()
			defer context.AfterFunc(s.life, cancel)()
			l, err := s.convertBlob(ctx, next)
			if err != nil {
				s.mu.Lock()
				delete(s.ahead, name) // whoever asks for it gets the error
				s.mu.Unlock()
				return
			}
			s.unpin(l)
		}()
	}
}
