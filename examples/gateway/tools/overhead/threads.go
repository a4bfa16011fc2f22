package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// hostSeconds is the processor time so far of the threads that are not the library's own. What
// computes the model costs the same whoever drains it, and is a hundred times as much: leaving it
// out leaves its noise out. The C loop runs on one of Go's threads, and is counted.
func hostSeconds() float64 {
	tasks, _ := filepath.Glob("/proc/self/task/*")
	total := 0.0
	for _, task := range tasks {
		name, err := os.ReadFile(filepath.Join(task, "comm"))
		if err != nil || bytes.HasPrefix(name, []byte("vrust")) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(task, "schedstat"))
		if err != nil {
			continue
		}
		nanoseconds, _, _ := bytes.Cut(text, []byte(" "))
		spent, _ := strconv.ParseFloat(string(nanoseconds), 64)
		total += spent / 1e9
	}
	return total
}
