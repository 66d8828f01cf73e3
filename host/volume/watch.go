package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// watcher hears of volumes that the kubelet has published anew. There is one for a sandbox, made for its first such volume: their number
// on a host is limited.
type watcher struct {
	fs   *fsnotify.Watcher
	done chan struct{}

	mu      sync.Mutex
	mirrors map[string]*mirror // by the name that is watched
}

// mirror is a copy of a volume in the guest that follows the kubelet's changes.
type mirror struct {
	copier *copier
	dir    *source
	to     string
	name   string
	again  chan struct{}
	end    context.CancelFunc
	done   chan struct{}
}

// Pauses before a copy that failed is tried again.
var retries = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second}

// follow copies a volume, and from then on each time the kubelet exchanges it.
func (s *Set) follow(ctx context.Context, c *copier, src *source, to string) (*mirror, error) {
	m := &mirror{copier: c, to: to, again: make(chan struct{}, 1), done: make(chan struct{})}
	f, err := openBelow(nil, fdPath(src.file), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	m.dir = &source{path: src.path, file: f}
	// Watching begins before the first copy, so that no change falls between the two.
	w, err := s.watcher()
	if err == nil {
		m.name = fdPath(f)
		err = w.add(m)
	}
	if err != nil {
		w = nil
		c.log.Warn("the volume will not follow changes", "reason", err, "hint", "fs.inotify.max_user_instances and max_user_watches bound watches")
	}
	if err := c.tree(ctx, f, to); err != nil {
		if w != nil {
			w.remove(m)
		}
		f.Close()
		return nil, err
	}
	life, end := context.WithCancel(s.life)
	m.end = end
	go m.run(life)
	return m, nil
}

// run copies the volume again whenever it has changed.
func (m *mirror) run(ctx context.Context) {
	defer close(m.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.again:
		}
		for attempt := 0; ; attempt++ {
			err := m.copier.tree(ctx, m.dir.file, m.to)
			if err == nil {
				m.copier.log.Debug("the volume's change is in the guest")
				break
			}
			if ctx.Err() != nil {
				return
			}
			if attempt == len(retries) {
				m.copier.log.Warn("the volume's change did not reach the guest", "reason", err)
				break
			}
			timer := time.NewTimer(retries[attempt])
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-m.again: // a newer change needs no pause
				timer.Stop()
			case <-timer.C:
			}
		}
	}
}

// stop ends the following and waits for it.
func (m *mirror) stop(w *watcher) {
	m.end()
	<-m.done
	if w != nil && m.name != "" {
		w.remove(m)
	}
	m.dir.file.Close()
}

func (s *Set) watcher() (*watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch != nil {
		return s.watch, nil
	}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching volumes: %w", err)
	}
	s.watch = &watcher{fs: fs, done: make(chan struct{}), mirrors: map[string]*mirror{}}
	go s.watch.run(s)
	return s.watch, nil
}

func (w *watcher) add(m *mirror) error {
	w.mu.Lock()
	w.mirrors[m.name] = m
	w.mu.Unlock()
	return w.fs.Add(m.name)
}

func (w *watcher) remove(m *mirror) {
	w.mu.Lock()
	delete(w.mirrors, m.name)
	w.mu.Unlock()
	_ = w.fs.Remove(m.name) // gone when the kubelet has removed the volume
}

func (w *watcher) close() error {
	err := w.fs.Close()
	<-w.done
	return err
}

// run passes changes on. When events were lost all volumes are looked at.
func (w *watcher) run(s *Set) {
	defer close(w.done)
	for {
		select {
		case e, ok := <-w.fs.Events:
			if !ok {
				return
			}
			// The kubelet exchanges ..data, and then makes the links of files that are new; its temporary names are not for us.
			if name := filepath.Base(e.Name); e.Has(fsnotify.Create) && (name == dataLink || !strings.HasPrefix(name, "..")) {
				w.wake(filepath.Dir(e.Name))
			}
		case err, ok := <-w.fs.Errors:
			if !ok {
				return
			}
			s.log.Warn("watching volumes", "error", err)
			w.wake("")
		}
	}
}

// wake lets one mirror copy again, or all.
func (w *watcher) wake(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, m := range w.mirrors {
		if name != "" && n != name {
			continue
		}
		select {
		case m.again <- struct{}{}:
		default: // it is going to
		}
	}
}
