// Package reap starts every process the guest runs and collects every exit status.
//
// PID 1 inherits the orphans of the whole machine, so exit statuses arrive for processes it never started: the init of
// a container is a child of runc only until runc exits. Waiting for single processes in several places would race with
// the collection of those orphans. Here one loop waits for any child, woken by SIGCHLD and never by a timer, and hands
// each status to whoever asked for that pid. Starting, waiting and signalling are serialised by one lock, so a status is
// never collected before its owner is known and a signal never reaches a recycled pid.
//
// No other package of the guest may use os/exec or wait for children.
package reap
