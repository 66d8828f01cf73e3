// Package network connects the network namespace that CNI made for a pod to the pod's virtual machine.
//
// CNI leaves a namespace with interfaces, addresses, routes and neighbours in it (runtime-shim.md section 10). The machine takes the
// place of the program that would have run there: each interface is joined with a tap, whose file descriptors go to the virtual
// machine monitor, and the guest agent is told the interface's name, hardware address, addresses, routes and neighbours. The guest's
// card has the hardware address of the interface, so nothing outside the namespace sees a difference. The interface keeps its
// addresses; it takes part in nothing any more, because every frame that arrives is passed on before the kernel looks at it.
//
// The life of a pod's network:
//
//  1. Attach opens the namespace, refuses that of the host, looks at what is in it, writes down in a state file what it will make,
//     and makes it. When a step fails, what was made before is removed.
//  2. The monitor is started with the files of each Interface; then Interface.CloseFiles gives up our copies.
//  3. Network.Guest has the requests for the agent.
//  4. Network.Watch (or Rescan) finds what is added, changed or removed later.
//  5. Network.Detach removes everything. After a crash Cleanup does the same from the state file alone, as often as it is called, and
//     also when the namespace is gone.
//
// The taps are not persistent: the kernel removes one when the last process that has it open ends. What outlives a crash are the
// redirections on the pod's interfaces and, in the other model, the macvtap links.
//
// Whoever runs CNI is root on this host, so what it made is believed. It is bounded all the same, so that a namespace with a million
// routes is an error in the pod's event and not a shim that eats the node's memory.
package network
