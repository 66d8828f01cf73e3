// Package chtest is a stand-in for the program cloud-hypervisor, for tests: it serves the REST API as the OpenAPI description of the
// real one says, takes taps with the requests, has a hybrid vsock socket and writes events and a console. It runs no guest.
//
// A test program becomes the stand-in when it is started like it, so that a test names itself as the program:
//
//	func TestMain(m *testing.M) { chtest.Main(); os.Exit(m.Run()) }
//
// What goes wrong in it is said by the file "behaviour" beside the VM's directory, one word a line; see the constants.
package chtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// What the stand-in can do wrong.
const (
	EarlyExit      = "early-exit"      // says why and ends before its first answer
	Hang           = "hang"            // never answers
	HangAtBoot     = "hang-at-boot"    // does not answer vm.boot
	FloodHeader    = "flood-header"    // answers with an endless header
	FloodBody      = "flood-body"      // answers with an endless body
	OldVersion     = "old-version"     // is version 50
	NoTDX          = "no-tdx"          // was built without TDX
	IgnoresMembers = "ignores-members" // knows neither TDX nor MRCONFIGID in the configuration
	BootFails      = "boot-fails"      // refuses vm.boot
	ExitAtBoot     = "exit-at-boot"    // ends when it gets vm.boot
	FloodConsole   = "flood-console"   // writes 64 MiB to the console
	FloodEvents    = "flood-events"    // writes an endless event
	WrongPlace     = "wrong-place"     // puts devices where none can be
	WrongSize      = "wrong-size"      // says that the VM has absurdly much
	StaysOn        = "stays-on"        // ignores the power button and vmm.shutdown
	Reboots        = "reboots"         // the guest resets
	Panics         = "panics"          // the guest's kernel panics and resets
	VsockLate      = "vsock-late"      // the guest listens from the fourth attempt on
	VsockLies      = "vsock-lies"      // answers the handshake with something else
	VsockFloods    = "vsock-floods"    // answers it with an endless line
	VsockHangs     = "vsock-hangs"     // does not answer it
)

// Request is what the stand-in has got, a line each in the file "requests" beside the VM's directory.
type Request struct {
	Name  string          `json:"name"`
	Body  json.RawMessage `json:"body,omitempty"`
	Files []string        `json:"files,omitempty"` // what the received descriptors are
}

type fake struct {
	base   string
	events *os.File
	guest  func(conn net.Conn) // nil sends back what it gets
	server *http.Server

	mu        sync.Mutex
	behaviour []string
	log       *os.File
	config    map[string]any // nil before vm.create
	running   bool
	memory    int64
	devices   map[string]string
	vsockSeen int
}

// Main runs the stand-in and does not return, if the program was started like it.
func Main() { MainWith(nil) }

// MainWith is Main with something that serves the guest's port 1024; nil sends back what it gets.
func MainWith(guest func(conn net.Conn)) {
	if len(os.Args) < 2 || os.Args[1] != "--api-socket" {
		return
	}
	if err := run(guest); err != nil {
		fmt.Fprintln(os.Stderr, "fake cloud-hypervisor:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(guest func(conn net.Conn)) error {
	if want := []string{"--api-socket", "fd=3", "--event-monitor", "fd=4"}; !slices.Equal(os.Args[1:], want) {
		return fmt.Errorf("arguments %q", os.Args[1:])
	}
	f := &fake{base: filepath.Dir(os.Getenv("TMPDIR")), events: os.NewFile(4, "events"), devices: map[string]string{}, guest: guest}
	if b, err := os.ReadFile(filepath.Join(f.base, "behaviour")); err == nil {
		f.behaviour = strings.Fields(string(b))
	}
	if f.is(EarlyExit) {
		return fmt.Errorf("opening /dev/kvm: no such device")
	}
	var err error
	if f.log, err = os.OpenFile(filepath.Join(f.base, "requests"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(3, "api"))
	if err != nil {
		return err
	}
	if f.is(Hang) {
		return silence(l)
	}
	if f.is(FloodHeader) {
		return floodHeaders(l)
	}
	f.server = &http.Server{Handler: f, ConnContext: withConn}
	if err := f.server.Serve(fileListener{l.(*net.UnixListener)}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	select {} // exitSoon ends the process
}

// silence takes connections and never answers.
func silence(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
	}
}

func floodHeaders(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n")
		for err == nil {
			_, err = fmt.Fprintf(c, "X-More: %s\r\n", strings.Repeat("x", 4000))
		}
	}
}

func (f *fake) is(behaviour string) bool { return slices.Contains(f.behaviour, behaviour) }

func (f *fake) event(source, name string) {
	b, _ := json.MarshalIndent(map[string]any{"timestamp": map[string]int{"secs": 1, "nanos": 2}, "source": source, "event": name, "properties": nil}, "", "  ")
	_, _ = f.events.Write(append(b, "\n\n"...))
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, "/api/v1/")
	body, err := io.ReadAll(r.Body)
	if !ok || err != nil {
		fail(w, http.StatusBadRequest, "Bad Request")
		return
	}
	files := received(r.Context())
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	req := Request{Name: name, Body: body}
	for _, file := range files {
		link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
		req.Files = append(req.Files, link)
	}
	line, _ := json.Marshal(req)
	_, _ = f.log.Write(append(line, '\n'))
	method := http.MethodPut
	if name == "vmm.ping" || name == "vm.info" {
		method = http.MethodGet
	}
	if r.Method != method || method == http.MethodPut && len(body) > 0 && r.Header.Get("Content-Type") != "application/json" {
		fail(w, http.StatusBadRequest, "Bad Request")
		return
	}
	f.serve(w, name, body, len(files))
}

func (f *fake) serve(w http.ResponseWriter, name string, body []byte, files int) {
	switch name {
	case "vmm.ping":
		f.ping(w)
	case "vmm.shutdown":
		if f.is(StaysOn) {
			select {}
		}
		w.WriteHeader(http.StatusNoContent)
		go f.exitSoon()
	case "vm.create":
		f.create(w, body)
	case "vm.boot":
		f.boot(w)
	case "vm.info":
		f.info(w)
	case "vm.power-button":
		w.WriteHeader(http.StatusNoContent)
		if f.running && !f.is(StaysOn) {
			f.event("vm", "shutdown")
			go f.exitSoon()
		}
	case "vm.add-disk", "vm.add-net":
		f.add(w, name, body, files)
	case "vm.remove-device":
		var d struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(body, &d) != nil || f.devices[d.ID] == "" {
			fail(w, http.StatusNotFound, "Error from API", "No device to remove", d.ID)
			return
		}
		delete(f.devices, d.ID)
		w.WriteHeader(http.StatusNoContent)
	case "vm.resize":
		f.resize(w, body)
	default:
		fail(w, http.StatusNotFound, "Not Found")
	}
}

// exitSoon ends the process when the answers that are under way are written.
func (f *fake) exitSoon() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = f.server.Shutdown(ctx)
	os.Exit(0)
}

func fail(w http.ResponseWriter, status int, chain ...string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(chain)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (f *fake) ping(w http.ResponseWriter) {
	if f.is(FloodBody) {
		w.Header().Set("Content-Type", "application/json")
		_, err := io.WriteString(w, `{"version": "`)
		for err == nil {
			_, err = w.Write(bytes.Repeat([]byte("9"), 1<<16))
		}
		return
	}
	ping := map[string]any{"build_version": "v53.0.0", "version": "53.0.0", "pid": os.Getpid(), "features": []string{"io_uring", "kvm", "tdx"}}
	if f.is(OldVersion) {
		ping["version"] = "v50.0.0"
	}
	if f.is(NoTDX) {
		ping["features"] = []string{"kvm"}
	}
	answer(w, ping)
}
