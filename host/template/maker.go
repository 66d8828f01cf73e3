package template

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
)

// makeCommand is the first argument of a program that makes a template.
const makeCommand = "make-template"

// makeTimeout bounds the making of a template, which has the lowest priority on the host.
const makeTimeout = 10 * time.Minute

// maxOrder bounds what a maker reads.
const maxOrder = 1 << 20

// order is what a maker is told.
type order struct {
	Root string     `json:"root"`
	Key  string     `json:"key"`
	VM   vmm.Config `json:"vm"`
}

// Command runs the programs that the runtime needs beside itself for templates: what makes one, and what copies its memory. ok is false when args
// are for something else.
func Command(args []string) (status int, ok bool) {
	switch {
	case len(args) > 0 && args[0] == qemu.CopyMemoryCommand:
		return qemu.CopyMemory(args[1:]), true
	case len(args) == 1 && args[0] == makeCommand:
		if err := makeOrdered(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1, true
		}
		return 0, true
	}
	return 0, false
}

// Copier is the program that copies memory, where self calls Command: see vmm.Config.MemoryCopier.
func Copier(self string) []string { return []string{self, qemu.CopyMemoryCommand} }

// Begin lets self, a program that calls Command, make the template of a VM, unless it is there, or is being made, or has failed a short while
// ago. It does not wait: the maker lives on when this process ends. done is closed when the maker has ended.
func (s *Store) Begin(self, name string, vm vmm.Config) (done <-chan struct{}, err error) {
	if s.Find(name) != "" || s.failed(name) {
		closed := make(chan struct{})
		close(closed)
		return closed, nil
	}
	text, err := json.Marshal(order{s.root, name, vm})
	if err != nil {
		return nil, fmt.Errorf("making a template: %w", err)
	}
	cmd := exec.Command(self, makeCommand)
	cmd.Stdin, cmd.Dir, cmd.Env = bytes.NewReader(text), "/", process.Environment("/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("making a template: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it went is in the store
	}()
	return ended, nil
}

func makeOrdered(in io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(in, maxOrder))
	if err != nil {
		return fmt.Errorf("reading the order: %w", err)
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		return fmt.Errorf("reading the order: %w", err)
	}
	// It and its children work when nobody else wants to, and go first when memory is short.
	if err := unix.Setpriority(unix.PRIO_PGRP, 0, 19); err != nil {
		return fmt.Errorf("lowering the priority: %w", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return fmt.Errorf("lowering the priority: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), makeTimeout)
	defer cancel()
	return New(o.Root).Make(ctx, o.Key, func(ctx context.Context, dir string, limit int64) error {
		if is, err := qemu.TemplateKey(o.VM); err != nil || is != o.Key {
			return errors.Join(err, errors.New("the files of the virtual machine have changed"))
		}
		if err := enoughMemory("/proc/meminfo", o.VM.MemoryMiB); err != nil {
			return err
		}
		vm := o.VM
		vm.Name, vm.Dir, vm.ConsoleLog = "template-"+o.Key[:12], filepath.Join(dir, "vm"), ""
		return qemu.SaveTemplate(ctx, vm, dir, limit, nil)
	})
}

// enoughMemory refuses to start a VM that nobody asked for where memory is scarce.
func enoughMemory(meminfo string, mib int) error {
	text, err := os.ReadFile(meminfo)
	if err != nil {
		return fmt.Errorf("looking for memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "MemAvailable:" {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return fmt.Errorf("looking for memory: %w", err)
		}
		if want := int64(mib) * 2; kib>>10 < want {
			return fmt.Errorf("the host has %d MiB of memory left, too little for a template; want %d", kib>>10, want)
		}
		return nil
	}
	return errors.New("looking for memory: the host does not say what it has")
}
