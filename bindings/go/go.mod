module github.com/vrust/vrust/bindings/go

go 1.25
