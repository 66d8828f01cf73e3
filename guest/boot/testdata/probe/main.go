// Command probe is what the virtual machine test runs in a container: each word is a small experiment.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	for _, arg := range os.Args[1:] {
		verb, value, _ := strings.Cut(arg, "=")
		switch verb {
		case "say":
			fmt.Println(value)
		case "complain":
			fmt.Fprintln(os.Stderr, value)
		case "env":
			fmt.Println(os.Getenv(value))
		case "who":
			host, _ := os.Hostname()
			fmt.Println(os.Getpid(), os.Getuid(), host)
		case "cat":
			b, err := os.ReadFile(value)
			fmt.Println(strings.TrimSpace(string(b)), err)
		case "write":
			fmt.Println(os.WriteFile(value, []byte("x"), 0o644))
		case "ls":
			entries, err := os.ReadDir(value)
			for _, e := range entries {
				fmt.Print(e.Name(), " ")
			}
			fmt.Println(err)
		case "open":
			f, err := os.OpenFile(value, os.O_RDWR, 0)
			fmt.Println(err)
			if err == nil {
				f.Close()
			}
		case "echo":
			_, _ = io.Copy(os.Stdout, os.Stdin)
		case "line":
			s := bufio.NewScanner(os.Stdin)
			s.Scan()
			fmt.Println("got", s.Text())
		case "eat":
			var hold [][]byte
			for {
				b := make([]byte, 1<<20)
				for i := range b {
					b[i] = 1
				}
				hold = append(hold, b)
			}
		case "term":
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGTERM)
			fmt.Println("ready")
			<-c
			os.Exit(9)
		case "sleep":
			fmt.Println("sleeping")
			time.Sleep(time.Hour)
		case "exit":
			var n int
			fmt.Sscan(value, &n)
			os.Exit(n)
		}
	}
}
