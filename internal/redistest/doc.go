// Package redistest runs real Redis and Valkey servers for tests, on loopback
// and without touching the disk outside of a temporary folder.
//
// There are no such servers for Windows, where it is empty.
package redistest
