# From either boot protocol's 32-bit protected mode to long mode.
#
# PVH (QEMU -kernel) and multiboot2 (GRUB, BIOS and UEFI) both enter with paging off, flat segments and
# EBX pointing to their information; only EAX tells them apart (multiboot2 sets it to 0x36d76289, PVH
# leaves it undefined). So there is one entry, and Rust looks at the magic numbers.

.section .boot.header, "a"
.balign 8
multiboot2_header:
    .long 0xe85250d6                    # magic
    .long 0                             # architecture: 32-bit protected mode of i386
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + 0 + (multiboot2_header_end - multiboot2_header))
    .short 0, 0                         # end tag
    .long 8
multiboot2_header_end:

.section .note.pvh, "a", @note
.balign 4
    .long 4                             # size of the name
    .long 8                             # size of the descriptor
    .long 18                            # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad entry32

.section .boot.text, "ax"
.code32
.global entry32
entry32:
    cli
    cld
    lea esp, [boot_stack_end]
    mov edi, eax                        # for rust_entry(magic, info)
    mov esi, ebx

    # Without long mode there is no Rust to report it.
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb no_long_mode
    mov eax, 0x80000001
    cpuid
    test edx, 1 << 29
    jz no_long_mode
    mov ebp, edx

    # Identity map of the first 512 GiB by 1 GiB pages: present, writable, page size. Every CPU with nested
    # paging has such pages. On others the first one is made of 2 MiB pages, so that the host can say that
    # it cannot run there; it touches nothing beyond.
    lea eax, [boot_pdpt + 3]
    mov [boot_pml4], eax
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 30
    or eax, 0x83
    mov [boot_pdpt + ecx * 8], eax
    mov eax, ecx
    shr eax, 2
    mov [boot_pdpt + ecx * 8 + 4], eax
    inc ecx
    cmp ecx, 512
    jb 1b
    test ebp, 1 << 26                               # 1 GiB pages
    jnz 3f
    lea eax, [boot_pd + 3]
    mov [boot_pdpt], eax
    xor ecx, ecx
2:  mov eax, ecx
    shl eax, 21
    or eax, 0x83
    mov [boot_pd + ecx * 8], eax
    inc ecx
    cmp ecx, 512
    jb 2b
3:
    lea eax, [boot_pml4]
    mov cr3, eax
    mov eax, (1 << 5) | (1 << 9) | (1 << 10)        # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080                             # EFER
    rdmsr
    or eax, (1 << 8) | (1 << 11)                    # LME, NXE
    wrmsr
    mov eax, (1 << 31) | (1 << 16) | (1 << 5) | (1 << 1) | 1    # PG, WP, NE, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp 0x08, offset entry64

no_long_mode:
    lea esi, [no_long_mode_text]
    mov edi, 0xb8000
4:  lodsb
    test al, al
    jz 5f
    mov ah, 0x4f                                    # white on red
    stosw
    mov dx, 0x3f8
    out dx, al
    jmp 4b
5:  hlt
    jmp 5b

.code64
entry64:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    lea rsp, [boot_stack_end]
    xor ebp, ebp                                    # the end of every backtrace
    mov edi, edi
    mov esi, esi
    call rust_entry
    ud2

.section .rodata.boot, "a"
no_long_mode_text:
    .asciz "elab: this CPU has no 64-bit mode, so no AMD-V (SVM) with nested paging; host halted\r\n"
.balign 8
gdt:
    .quad 0
    .quad 0x00af9a000000ffff                        # 0x08: 64-bit code
    .quad 0x00cf92000000ffff                        # 0x10: data
gdt_pointer:
    .short gdt_pointer - gdt - 1
    .quad gdt

.section .bss.boot, "aw", @nobits
.balign 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 4096
# No guard page below: the identity map is by 1 GiB pages. The main loop looks at the lowest words instead.
# The deepest path measured, with migrations both ways, uses 21 KiB.
boot_stack: .skip 256 * 1024
.global boot_stack_end
boot_stack_end:
