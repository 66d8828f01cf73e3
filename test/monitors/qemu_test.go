package monitors

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/cloister/cloister/test/fakeguest"
)

// fakeQEMU is a QEMU that has the channels which its command line names, and a fake guest behind that of the agent. It answers every
// command with an empty object.
func fakeQEMU(g *fakeguest.Guest) error {
	conns := map[string]net.Conn{}
	for i, a := range os.Args {
		rest, ok := strings.CutPrefix(a, "socket,id=")
		if !ok || os.Args[i-1] != "-chardev" {
			continue
		}
		id, number, _ := strings.Cut(rest, ",fd=")
		fd, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("argument %q: %w", a, err)
		}
		f := os.NewFile(uintptr(fd), id)
		conns[id], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("channel %s: %w", id, err)
		}
	}
	if conns["qmp"] == nil || conns["agent"] == nil || conns["console"] == nil {
		return fmt.Errorf("channels %v", conns)
	}
	fmt.Fprintln(conns["console"], "the console")
	go func() { _ = g.Serve(conns["agent"]) }()
	fmt.Fprintln(conns["qmp"], `{"QMP": {"version": {}, "capabilities": []}}`)
	lines := bufio.NewScanner(conns["qmp"])
	for lines.Scan() {
		var c struct {
			Execute string
			ID      uint64
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return err
		}
		fmt.Fprintf(conns["qmp"], "{\"return\": {}, \"id\": %d}\n", c.ID)
		if c.Execute == "quit" {
			return nil
		}
	}
	return lines.Err()
}
