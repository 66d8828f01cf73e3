// Package console is the web console of the broker: pages under /console/ for administrators.
//
// The pages are made by the server; a small script adds what is convenient and nothing that is needed. They show what guests say,
// and guests are hostile: every text goes through html/template, is cut to a length and has its control and direction characters
// made visible, and the Content-Security-Policy lets a page load and send nothing but to the broker itself. Secrets go in and never
// come out; no page can be asked for the value of a resource.
//
// Life of a request:
//
//  1. A session is found by its cookie, or made for an administrator whom a client certificate names; else the sign-in form is shown.
//  2. A POST must come from a page of ours: Sec-Fetch-Site or Origin say so, and the form carries the session's token.
//  3. The administrator must be allowed the call of the API that does the same (calls.go), so that roles hold here as there.
//  4. A change is recorded as tried before it is made and with its outcome afterwards. What cannot be recorded is not done.
//
// The token of an administrator is kept in memory for as long as the session lasts, by this replica only, and is on no page.
package console
