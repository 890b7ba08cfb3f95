# The boot header, the entry, and the interrupt stubs.

.section .boot.header, "a"
header_begin:
    .skip 0x1f1
    .byte 1                                         # 0x1f1 setup_sects
    .short 0
    .long payload_paragraphs                        # 0x1f4 syssize
    .short 0, 0, 0
    .short 0xaa55                                   # 0x1fe boot_flag
    .byte 0xeb, 0x66                                # 0x200 jump; its second byte ends the header at 0x268
    .ascii "HdrS"
    .short 0x20f                                    # 0x206 version
    .long 0
    .short 0, 0
    .byte 0
    .byte 1                                         # 0x211 loadflags: LOADED_HIGH
    .short 0
    .long 0x100000                                  # 0x214 code32_start
    .long 0, 0, 0                                   # 0x218 ramdisk_image, ramdisk_size, bootsect_kludge
    .short 0
    .byte 0, 0
    .long 0                                         # 0x228 cmd_line_ptr
    .long 0x7fffffff                                # 0x22c initrd_addr_max
    .long 0x1000                                    # 0x230 kernel_alignment
    .byte 0, 12                                     # 0x234 relocatable_kernel: no; min_alignment
    .short 1                                        # 0x236 xloadflags: XLF_KERNEL_64
    .long 255                                       # 0x238 cmdline_size
    .long 0
    .quad 0
    .long 0, 0                                      # 0x248 payload_offset, payload_length
    .quad 0                                         # 0x250 setup_data
    .quad 0x100000                                  # 0x258 pref_address
    .long payload_size                              # 0x260 init_size
    .long 0

.section .boot.text, "ax"
.global entry64
entry64:
    lea rsp, [stack_end]
    mov rdi, rsi                                    # the zero page
    xor ebp, ebp
    call guest_main
    ud2

.section .text.interrupts, "ax"
.altmacro
.macro stub vector
    .balign 16
    .if (\vector == 8) || (\vector >= 10 && \vector <= 14) || (\vector == 17) || (\vector == 21) || (\vector == 29) || (\vector == 30)
    .else
    push 0
    .endif
    push \vector
    jmp interrupt_common
.endm

.balign 16
.global interrupt_stubs
interrupt_stubs:
.set vector_number, 0
.rept 256
    stub %vector_number
    .set vector_number, vector_number + 1
.endr

interrupt_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call handle_interrupt
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

# catch_fault(function, argument): calls the function; 0 if it came back, else what the handler left.
.global catch_fault
catch_fault:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    mov [recovery_stack], rsp
    mov rax, rdi
    mov rdi, rsi
    call rax
    xor eax, eax
    mov [recovery_stack], rax
.global catch_fault_return
catch_fault_return:
    add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

.section .bss.start, "aw", @nobits
.balign 16
stack: .skip 64 * 1024
stack_end:
.balign 8
# While not 0: where the handler of an exception goes back to.
.global recovery_stack
recovery_stack: .skip 8
