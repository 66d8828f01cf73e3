package chtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

func (f *fake) create(w http.ResponseWriter, body []byte) {
	var c map[string]any
	if err := json.Unmarshal(body, &c); err != nil || c["payload"] == nil {
		fail(w, http.StatusBadRequest, "Error deserializing JSON", "missing field `payload`")
		return
	}
	if f.config != nil {
		fail(w, http.StatusInternalServerError, "Error from API", "VM is already created")
		return
	}
	f.config, f.memory = c, number(c, "memory", "size")
	w.WriteHeader(http.StatusNoContent)
}

// number is an integer inside nested objects, 0 when it is not there.
func number(c map[string]any, path ...string) int64 {
	var v any = c
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	n, _ := v.(float64)
	return int64(n)
}

func (f *fake) boot(w http.ResponseWriter) {
	switch {
	case f.config == nil:
		fail(w, http.StatusNotFound, "Error from API", "VM is not created")
		return
	case f.is(BootFails):
		fail(w, http.StatusInternalServerError, "Error from API", "Error booting VM", "Cannot open kernel\x1b[2J")
		return
	case f.is(ExitAtBoot):
		fmt.Fprintln(os.Stderr, "thread 'vmm' panicked")
		os.Exit(101)
	case f.is(HangAtBoot):
		select {}
	}
	if err := f.start(); err != nil {
		fail(w, http.StatusInternalServerError, "Error from API", err.Error())
		return
	}
	f.running = true
	f.event("vm", "booted")
	w.WriteHeader(http.StatusNoContent)
	if f.is(FloodEvents) {
		go flood(f.events, `{"source":"`+strings.Repeat("x", 4096))
	}
	if f.is(Reboots) {
		f.event("vm", "rebooting")
	}
	if f.is(Panics) {
		f.event("guest", "panic")
		f.event("vm", "rebooting")
	}
}

func flood(w io.Writer, text string) {
	for {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
	}
}

// start opens what a running guest would be seen through.
func (f *fake) start() error {
	for _, name := range []string{"serial", "console"} {
		c, _ := f.config[name].(map[string]any)
		if c["mode"] != "File" {
			continue
		}
		file, err := os.Create(c["file"].(string))
		if err != nil {
			return fmt.Errorf("opening the console: %w", err)
		}
		fmt.Fprintf(file, "console of %s\n", name)
		if f.is(Panics) {
			fmt.Fprintln(file, "[    1.0] Kernel panic - not syncing: test")
		}
		if f.is(FloodConsole) {
			go func() {
				for range 1 << 14 {
					fmt.Fprintln(file, strings.Repeat("y", 4095))
				}
			}()
		}
	}
	v, _ := f.config["vsock"].(map[string]any)
	l, err := net.Listen("unix", v["socket"].(string))
	if err != nil {
		return fmt.Errorf("making the vsock device: %w", err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.vsockSeen++
			n := f.vsockSeen
			f.mu.Unlock()
			go f.stream(c, n)
		}
	}()
	return nil
}

// stream is a connection to the guest: its port 1024 sends back what it gets, nobody listens on others.
func (f *fake) stream(c net.Conn, n int) {
	defer c.Close()
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil || line != "CONNECT 1024\n" || f.is(VsockLate) && n < 4 {
		return
	}
	switch {
	case f.is(VsockLies):
		fmt.Fprint(c, "ERROR \x1b[31m1\n")
		return
	case f.is(VsockFloods):
		flood(c, strings.Repeat("OK ", 1000))
		return
	case f.is(VsockHangs):
		_, _ = io.Copy(io.Discard, c)
		return
	}
	if f.guest != nil {
		fmt.Fprint(c, "OK 1073741824\n")
		f.guest(c) // the monitor waits for the line: nothing of the stream is in r
		return
	}
	// The first bytes of the stream right behind the line.
	fmt.Fprint(c, "OK 1073741824\nhello")
	_, _ = io.Copy(c, r)
}

func (f *fake) info(w http.ResponseWriter) {
	if f.config == nil {
		fail(w, http.StatusNotFound, "Error from API", "VM is not created")
		return
	}
	state, memory := "Created", f.memory
	if f.running {
		state = "Running"
	}
	if f.is(WrongSize) {
		memory = 1 << 60
	}
	if f.is(IgnoresMembers) {
		delete(f.config["payload"].(map[string]any), "mrconfigid")
		f.config["platform"] = map[string]any{"num_pci_segments": 1}
	}
	answer(w, map[string]any{"config": f.config, "state": state, "memory_actual_size": memory, "device_tree": map[string]any{}})
}

func (f *fake) add(w http.ResponseWriter, name string, body []byte, files int) {
	var d struct {
		ID        string `json:"id"`
		Path      string `json:"path"`
		ImageType string `json:"image_type"`
		Queues    int    `json:"num_queues"`
	}
	if f.config == nil {
		fail(w, http.StatusNotFound, "Error from API", "VM is not created")
		return
	}
	if json.Unmarshal(body, &d) != nil || d.ID == "" {
		fail(w, http.StatusBadRequest, "Error deserializing JSON")
		return
	}
	if f.devices[d.ID] != "" {
		fail(w, http.StatusConflict, "Error from API", "Identifier "+d.ID+" is not unique")
		return
	}
	if name == "vm.add-net" && (files == 0 || d.Queues != 2*files) {
		fail(w, http.StatusBadRequest, "Error from API", "Number of queues does not match the number of FDs")
		return
	}
	if name == "vm.add-disk" {
		if _, err := os.Stat(d.Path); err != nil || d.ImageType != "Raw" {
			fail(w, http.StatusInternalServerError, "Error from API", "Cannot open disk path")
			return
		}
	}
	place := fmt.Sprintf("0000:00:%02x.0", 3+len(f.devices))
	f.devices[d.ID] = place
	if !f.running {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if f.is(WrongPlace) {
		place = "0000:00:../../x\n.0"
	}
	answer(w, map[string]string{"id": d.ID, "bdf": place})
}

func (f *fake) resize(w http.ResponseWriter, body []byte) {
	var r struct {
		VCPUs int   `json:"desired_vcpus"`
		RAM   int64 `json:"desired_ram"`
	}
	if json.Unmarshal(body, &r) != nil || !f.running {
		fail(w, http.StatusNotFound, "Error from API", "VM is not created")
		return
	}
	cpus := f.config["cpus"].(map[string]any)
	room := number(f.config, "memory", "size") + number(f.config, "memory", "hotplug_size")
	if int64(r.VCPUs) > number(f.config, "cpus", "max_vcpus") || r.RAM > room || r.RAM%(128<<20) != 0 {
		fail(w, http.StatusInternalServerError, "Error from API", "Cannot resize")
		return
	}
	if r.VCPUs > 0 {
		cpus["boot_vcpus"] = float64(r.VCPUs)
	}
	if r.RAM > 0 {
		f.memory = r.RAM
	}
	w.WriteHeader(http.StatusNoContent)
}

// Requests reads what the stand-in for the VM directory dir has got.
func Requests(base string) ([]Request, error) {
	f, err := os.Open(base + "/requests")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Request
	for d := json.NewDecoder(f); ; {
		var r Request
		if err := d.Decode(&r); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
}
